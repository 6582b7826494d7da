"""Outputs on `s3://` paths, against a real S3-compatible server started by the test."""

from __future__ import annotations

from pathlib import Path

import pytest
from made_outputs import DotSource, source_statistics, write_output

from molmoact_data import schema
from molmoact_data.errors import UserError
from molmoact_data.exporters import ExportOptions, export
from molmoact_data.files.storage import Storage
from molmoact_data.outputs.output import Output
from molmoact_data.validate import Finding, validate


def test_an_output_on_s3_is_the_local_one_byte_for_byte(bucket, make_output):
    local = make_output()

    write_output(f"{bucket}/run/out")

    remote = Storage(f"{bucket}/run/out")
    names = remote.list()
    assert names == Storage(str(local)).list()
    assert all(remote.read_bytes(name) == (local / name).read_bytes() for name in names)


def test_an_output_on_s3_validates_and_a_flipped_byte_is_found(bucket):
    write_output(f"{bucket}/out")
    assert validate(f"{bucket}/out").to_json()["findings"] == {}

    storage = Storage(f"{bucket}/out")
    name = Output.open(f"{bucket}/out").shards[0].name
    content = bytearray(storage.read_bytes(name))
    content[len(content) // 2] ^= 0xFF
    storage.write_bytes(name, bytes(content))

    found = {p.finding for p in validate(f"{bucket}/out").problems}
    assert Finding.SHARD_HASH_DIFFERS in found


def test_retokenise_reads_and_writes_s3(bucket):
    from pipelines.retokenize import RetokenizeConfig, retokenize

    write_output(f"{bucket}/old")
    wider = source_statistics(DotSource(lengths=(40,)))

    done = retokenize(
        Output.open(f"{bucket}/old"),
        Storage(f"{bucket}/new"),
        RetokenizeConfig(statistics=wider),
        resume=False,
        overwrite=False,
    )

    assert done.frames == 33
    assert validate(f"{bucket}/new").passed


def test_an_export_reads_from_s3(bucket, tmp_path: Path):
    write_output(f"{bucket}/out")
    done = export(
        f"{bucket}/out", tmp_path / "conv", "conversations", ExportOptions(), overwrite=False
    )
    # The last frame of each of the four episodes has a trace of one point, which cannot be drawn.
    assert (done.rows, done.left_out) == (29, {"no_usable_trace": 4})


def test_preprocess_writes_to_s3_and_resumes_there(bucket):
    """The whole command, local runner, on the shipped episodes."""
    from pipelines.config import preprocess_config
    from pipelines.preprocess import preprocess

    dataset = Path(__file__).resolve().parents[1] / "examples" / "demo_dataset"
    if not dataset.is_dir():
        pytest.skip("the shipped episodes are not in this checkout")
    flags = {
        "dataset_path": str(dataset),
        "output_path": f"{bucket}/demo",
        "depth": "none",
        "pointer": "none",
        "episodes": "0-1",
        "frames_per_shard": 1,
    }
    config = preprocess_config(flags, None)
    first = preprocess(config, resume=False, overwrite=False)
    assert (first.shards, first.shards_built) == (2, 2)
    storage = Storage(f"{bucket}/demo")
    storage.delete(Output.open(f"{bucket}/demo").shards[1].name)
    storage.delete(schema.REPORT_FILE)

    again = preprocess(config, resume=True, overwrite=False)

    assert again.shards_built == 1
    assert validate(f"{bucket}/demo").passed
    assert storage.exists(schema.REPORT_FILE)


@pytest.mark.parametrize("ask", ["exists", "read_bytes", "list", "delete", "open_bytes"])
def test_an_output_that_may_not_be_read_is_one_line(bucket, no_credentials, ask):
    with pytest.raises(UserError, match=r"s3://robots/out: Unable to locate.*AWS_PROFILE") as met:
        getattr(Storage(f"{bucket}/out"), ask)("manifest.json")
    assert "\n" not in str(met.value)


def test_an_output_that_may_not_be_written_is_one_line(bucket, no_credentials):
    with pytest.raises(UserError, match="Unable to locate credentials"):
        Storage(f"{bucket}/out").write_bytes("manifest.json", b"{}")


def test_an_output_in_no_bucket_is_one_line(bucket):
    with pytest.raises(UserError, match=r"bucket does not exist.*Check the bucket"):
        Storage("s3://no-such-bucket/out").write_bytes("manifest.json", b"{}")


def test_a_mistyped_address_of_an_output_is_exit_code_2(molmoact, bucket, tmp_path):
    for address in (f"{bucket}/nothing-here", "s3://no-such-bucket/out", "teleport://robots/out"):
        code, stdout, stderr = molmoact(
            *("export", address, "--format", "conversations", "--output-path", tmp_path / "x")
        )
        assert (code, stdout) == (2, "")
        assert stderr.count("\n") == 1, stderr
