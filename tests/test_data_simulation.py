"""The table-top world: its camera maths, its splits, its motion, and what LeRobot reads of it."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import mujoco
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from made_gl import needs_gl
from PIL import Image
from scipy.spatial.transform import Rotation

from molmoact_data.errors import UserError
from molmoact_data.sources.opening import open_source
from molmoact_robot.tabletop import camera, randomization, textures
from molmoact_robot.tabletop.arm import HOME_RAD
from molmoact_robot.tabletop.control import ArmController, solve_ik
from molmoact_robot.tabletop.dataset import WriteConfig, encode_depth_png, write_dataset
from molmoact_robot.tabletop.episodes import EpisodeConfig, act_only, run_episode, start_rollout
from molmoact_robot.tabletop.frames import FrameConfig, random_frames
from molmoact_robot.tabletop.layout import sample_layout
from molmoact_robot.tabletop.randomization import sample_look
from molmoact_robot.tabletop.rotation import matrix_from_vector, vector_from_matrix
from molmoact_robot.tabletop.scene import FLAT, build_model
from molmoact_robot.tabletop.sensor import SensorModel, expose
from molmoact_robot.tabletop.tasks import FAMILIES, sample_task
from molmoact_robot.tabletop.view import SceneRenderer, depth_from_u16, depth_to_u16
from scripts.embedded.augmentation import random_crops, soften, vary_colour
from scripts.embedded.frame_shards import read_shard, stack_frames, write_shard

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "examples" / "demo_dataset"
SMALL = (64, 64)


@pytest.fixture(scope="module")
def model():
    rng = np.random.default_rng(0)
    look = sample_look(rng, "train")
    return build_model(look, sample_layout(rng, "train", ["cube", "bowl"]), FLAT), look


# --- camera and rotations -------------------------------------------------------------------------


def test_projection_equals_the_textbook_formula() -> None:
    """A camera 2 m behind the origin looking along world +x, hand-computed."""
    looking_x = np.array([[0.0, 0.0, -1.0], [-1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])  # MuJoCo columns
    pinhole = camera.PinholeCamera(
        camera.intrinsics(90.0, (100, 200)),
        camera.world_to_camera(np.array([-2.0, 0, 0]), looking_x),
        (100, 200),
    )
    pixel, depth = pinhole.project(np.array([[0.0, 0.0, 0.0], [0.0, -1.0, 0.5]]))
    np.testing.assert_allclose(depth, [2.0, 2.0])
    # focal = 50 px; 1 m to the right at 2 m = 25 px, 0.5 m up = 12.5 px; the middle is index 99.5, 49.5
    np.testing.assert_allclose(pixel, [[99.5, 49.5], [124.5, 37.0]])


def test_look_at_puts_the_target_in_the_middle() -> None:
    position, target = np.array([0.8, 0.2, 1.0]), np.array([-0.1, 0.05, 0.4])
    axes = camera.look_at_axes(position, target, roll_rad=0.3)
    np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=1e-12)
    pinhole = camera.PinholeCamera(
        camera.intrinsics(48.0, SMALL), camera.world_to_camera(position, axes), SMALL
    )
    pixel, depth = pinhole.project(target[None])
    np.testing.assert_allclose(pixel[0], [31.5, 31.5], atol=1e-9)
    assert depth[0] == pytest.approx(np.linalg.norm(position - target))


def test_rotation_vectors_equal_scipy() -> None:
    for vector in np.random.default_rng(1).uniform(-1.7, 1.7, (20, 3)):
        matrix = Rotation.from_rotvec(vector).as_matrix()
        np.testing.assert_allclose(matrix_from_vector(vector), matrix, atol=1e-12)
        np.testing.assert_allclose(vector_from_matrix(matrix), vector, atol=1e-9)


@pytest.mark.parametrize(
    ("pixel", "distance", "visible"),
    [((3.0, 2.0), 1.0, True), ((3.0, 2.0), 1.2, False), ((-3.0, 2.0), 1.0, False),
     ((3.0, 2.0), -1.0, False)],
)  # fmt: skip
def test_visible_means_inside_and_not_behind_something(pixel, distance, visible) -> None:
    wall_at_one_metre = np.ones((5, 8), np.float32)
    assert camera.is_visible(np.array(pixel), distance, wall_at_one_metre) is visible


# --- randomisation --------------------------------------------------------------------------------


def test_splits_share_neither_textures_nor_camera_bands() -> None:
    rng = np.random.default_rng(2)
    looks = {s: [sample_look(rng, s) for _ in range(300)] for s in ("train", "test")}
    low, high = randomization.TEST_AZIMUTH_DEG
    for split, samples in looks.items():
        seeds = {getattr(k, part).seed for k in samples for part in ("table", "floor", "wall")}
        assert {seed % 2 for seed in seeds} == {int(split == "test")}
        in_band = [low <= abs(k.front.azimuth_deg) <= high for k in samples]
        assert all(in_band) if split == "test" else not any(in_band)
    assert not {"tiles", "cloth"} & {k.table.family for k in looks["train"]}
    assert {"tiles", "cloth"} <= {k.table.family for k in looks["test"]}


def test_a_look_is_a_function_of_its_seed() -> None:
    looks = [sample_look(np.random.default_rng(5), "train") for _ in range(2)]
    assert looks[0] == looks[1]
    assert looks[0] != sample_look(np.random.default_rng(6), "train")


@pytest.mark.parametrize("family", sorted(textures.FAMILIES))
def test_a_texture_is_a_function_of_family_and_seed(family) -> None:
    one = textures.paint(textures.TextureSpec(family, 4, size_px=64))
    assert one.shape == (64, 64, 3)
    assert one.std() > 0.5, "not a flat colour"
    np.testing.assert_array_equal(one, textures.paint(textures.TextureSpec(family, 4, size_px=64)))
    assert (one != textures.paint(textures.TextureSpec(family, 6, size_px=64))).any()


def test_unknown_texture_family_is_named() -> None:
    with pytest.raises(ValueError, match=r"'velvet'.*cloth"):
        textures.TextureSpec("velvet", 0)


def test_a_perfect_sensor_changes_nothing_and_exposure_scales() -> None:
    rgb = np.random.default_rng(0).integers(0, 120, (8, 8, 3), np.uint8)
    np.testing.assert_array_equal(expose(rgb, SensorModel(), np.random.default_rng(0)), rgb)
    twice = expose(rgb, SensorModel(exposure=2.0), np.random.default_rng(0))
    np.testing.assert_array_equal(twice, rgb * 2)


def test_augmentation_moves_the_point_with_the_image() -> None:
    """A single bright pixel stays under its point through crop, zoom and mirror."""
    generator = torch.Generator().manual_seed(0)
    x = torch.full((12, 3, 64, 64), -1.0)
    x[:, :, 40, 28] = 1.0
    crops, points = random_crops(x, torch.tensor([[28.0, 40.0]]).repeat(12, 1), generator)
    for crop, point in zip(crops, points, strict=True):
        if not ((point > 2) & (point < 61)).all():
            continue
        weight = (crop[0] + 1).double()
        rows, columns = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
        centre = torch.stack([(columns * weight).sum(), (rows * weight).sum()]) / weight.sum()
        np.testing.assert_allclose(centre, point, atol=0.8)
    assert len({tuple(p.tolist()) for p in points}) > 6, "crops differ"


def test_colour_augmentation_stays_in_range_and_keeps_the_shape() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(6, 3, 16, 16, generator=generator) * 2 - 1
    y = soften(vary_colour(x, generator), generator)
    assert y.shape == x.shape
    assert y.abs().max() <= 1
    assert not torch.allclose(x, y, atol=0.01)


# --- motion ---------------------------------------------------------------------------------------


def test_inverse_kinematics_reaches_what_forward_kinematics_says(model) -> None:
    compiled, _ = model
    data = mujoco.MjData(compiled)
    wanted = HOME_RAD + np.array([0.3, 0.2, -0.2, 0.3, 0.2, -0.3, 0.4])
    data.qpos[:7] = wanted
    mujoco.mj_forward(compiled, data)
    position = data.site("grip").xpos.copy()
    rotation = data.site("grip").xmat.reshape(3, 3).copy()
    joints, error = solve_ik(compiled, data, HOME_RAD, position, rotation, iterations=60)
    assert error < 1e-3
    data.qpos[:7] = joints
    mujoco.mj_forward(compiled, data)
    np.testing.assert_allclose(data.site("grip").xpos, position, atol=1e-3)


def test_one_action_moves_the_grip_by_its_unit(model) -> None:
    """x = 1 is 5 cm, yaw = 1 is 0.5 rad; the arm follows within 2 mm once it has settled."""
    compiled, look = model
    arm = ArmController(compiled, look.table_height_m, HOME_RAD)
    before, turned_from = arm.grip_pose()
    arm.step(np.array([0.8, 0, 0.4, 0, 0, 1.0, 1.0], np.float32))
    for _ in range(5):
        arm.step(np.array([0, 0, 0, 0, 0, 0, 1.0], np.float32))
    after, turned_to = arm.grip_pose()
    np.testing.assert_allclose(after - before, [0.04, 0, 0.02], atol=2e-3)
    turn = vector_from_matrix(turned_to @ turned_from.T)
    np.testing.assert_allclose(turn, [0, 0, 0.5], atol=0.02)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_scripted_policy_does_the_task_and_idling_does_not(family) -> None:
    done = [act_only(seed, EpisodeConfig(family=family))[1] for seed in range(3)]
    assert sum(done) >= 2, f"{family}: {done}"
    assert not act_only(0, EpisodeConfig(family=family, policy="idle"))[1]


def test_every_action_dimension_is_alive() -> None:
    """The defect of the prototype: roll and pitch were always zero and yaw nearly so."""
    actions = [act_only(s, EpisodeConfig(family=f))[0] for s, f in enumerate(FAMILIES)]
    active = (np.abs(np.concatenate(actions)) > 0.02).mean(axis=0)
    assert (active[:6] > 0.2).all(), active.round(2)
    gripper = np.concatenate(actions)[:, 6]
    assert set(np.unique(gripper)) == {0.0, 1.0}


def test_actions_are_a_function_of_the_seed() -> None:
    one, again = (act_only(11, EpisodeConfig(family="pick"))[0] for _ in range(2))
    np.testing.assert_array_equal(one, again)


def test_instructions_name_what_is_on_the_table() -> None:
    rng = np.random.default_rng(3)
    for family in FAMILIES:
        task = sample_task(rng, "test", family)
        subject = task.objects[0]
        assert f"the {subject.colour} {subject.kind}" in task.instruction


# --- pictures -------------------------------------------------------------------------------------


@needs_gl
def test_depth_and_projection_agree_with_ray_casts(model) -> None:
    """The colour of a pixel, its depth and the projection are one geometry: shoot rays at some pixels."""
    compiled, _ = model
    data = mujoco.MjData(compiled)
    mujoco.mj_forward(compiled, data)
    with SceneRenderer(compiled, SMALL, shadows=False) as renderer:
        depth = renderer.depth(data, "front")
        pinhole = renderer.calibration(data, "front")
    to_world = np.linalg.inv(pinhole.world_to_camera_44)
    for row, column in [(10, 12), (40, 20), (50, 50), (33, 31)]:
        ray = np.linalg.inv(pinhole.intrinsics_33) @ [column + 0.5, row + 0.5, 1.0]
        hit = to_world[:3, :3] @ (ray * depth[row, column]) + to_world[:3, 3]
        direction = to_world[:3, :3] @ ray
        cast = mujoco.mj_ray(
            compiled, data, to_world[:3, 3], direction, None, 1, -1, np.zeros(1, np.int32)
        )
        assert cast == pytest.approx(depth[row, column], abs=2e-3)
        np.testing.assert_allclose(pinhole.project(hit[None])[0][0], [column, row], atol=1e-6)


@needs_gl
def test_frames_are_a_function_of_the_seed_and_survive_a_shard(tmp_path) -> None:
    config = FrameConfig(image_hw=SMALL, frames_per_scene=3, wrist_share=0.5)
    one, again = (stack_frames(list(random_frames(4, 4, config))) for _ in range(2))
    write_shard(one, tmp_path / "train" / "shard_00000")
    read = read_shard(tmp_path / "train" / "shard_00000")
    for name, array in vars(one).items():
        np.testing.assert_array_equal(array, getattr(again, name), err_msg=name)
        np.testing.assert_array_equal(array, getattr(read, name), err_msg=name)
    assert [p.name for p in (tmp_path / "train").iterdir()] == ["shard_00000"]


@pytest.fixture(scope="module")
def episode():
    config = EpisodeConfig(image_hw=SMALL, quality=FLAT, family="pick", split="test")
    return run_episode(2, config)


@needs_gl
def test_the_recorded_gripper_pixel_is_the_projected_state(episode) -> None:
    """`observation.state` and `meta/cameras.jsonl` are enough to point: that is the projection pointer."""
    for step in episode.steps[::6]:
        seen = step.observation
        pixel, _ = episode.front_camera.project(seen.state[None, :3].astype(np.float64))
        np.testing.assert_allclose(pixel[0], seen.grip_pixel_2, atol=1e-2)


@needs_gl
@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_columns_come_back_from_disk(tmp_path, episode, version) -> None:
    frames = write_dataset(tmp_path / "d", [episode, episode], WriteConfig(version=version))
    assert frames == 2 * len(episode.steps)
    info = json.loads((tmp_path / "d/meta/info.json").read_text())
    assert info["codebase_version"] == version
    assert info["total_frames"] == frames
    last = sorted((tmp_path / "d/data").rglob("*.parquet"))[-1]
    table = pq.read_table(last)  # of the second episode alone in v2.1, of both in v3.0
    rows = table.slice(table.num_rows - len(episode.steps)).to_pydict()
    assert set(rows) == set(info["features"]) - {
        "observation.images.front", "observation.images.wrist",
    }  # fmt: skip
    assert rows["index"] == list(range(len(episode.steps), frames))
    np.testing.assert_array_equal(rows["action"], [s.action for s in episode.steps])
    assert rows["next.success"] == [s.success for s in episode.steps]
    png = rows["observation.depth.front"][3]["bytes"]
    restored = depth_from_u16(np.asarray(Image.open(io.BytesIO(png))).astype(np.uint16))
    truth = episode.steps[3].observation.front_depth_HW
    np.testing.assert_allclose(restored, truth, atol=0.00026)


@needs_gl
@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_our_reader_finds_every_episode_frame_and_statistic(tmp_path, episode, version) -> None:
    second = dataclasses.replace(episode, steps=episode.steps[:9])
    root = tmp_path / "d"
    write_dataset(root, [episode, second], WriteConfig(version=version, crf=1))
    source = open_source(str(root))
    assert not source.info.warnings
    assert [ref.num_frames for ref in source.episodes] == [len(episode.steps), 9]
    last = source.episodes[1]
    np.testing.assert_array_equal(
        source.read_columns(last).action, [s.action for s in second.steps]
    )
    (batch,) = source.iter_frames(last, ["observation.images.wrist"], 64)
    wrist = np.stack([s.observation.wrist_rgb_HWC for s in second.steps]).astype(float)
    assert np.abs(batch["observation.images.wrist"].rgb_NHWC - wrist).mean() < 6
    if version == "v2.1":
        lines = (root / "meta/episodes_stats.jsonl").read_text().splitlines()
        stats = json.loads(lines[1])["stats"]
        actions, frames = [s.action for s in second.steps], second.steps
    else:
        stats = json.loads((root / "meta/stats.json").read_text())
        actions = [s.action for s in (*episode.steps, *second.steps)]
        frames = [*episode.steps[::10], *second.steps[::10]]
    np.testing.assert_allclose(stats["action"]["mean"], np.mean(actions, axis=0, dtype=float))
    if version == "v3.0":
        rgb = np.stack([s.observation.front_rgb_HWC for s in frames]) / 255
        channels = np.reshape(stats["observation.images.front"]["mean"], 3)
        np.testing.assert_allclose(channels, rgb.mean(axis=(0, 1, 2)))
    assert "observation.depth.front" not in stats


@needs_gl
def test_lerobot_reads_the_v30_form(tmp_path, episode) -> None:
    lerobot = pytest.importorskip("lerobot.datasets.lerobot_dataset")
    second = dataclasses.replace(episode, steps=episode.steps[:9])
    write_dataset(tmp_path / "d", [episode, second], WriteConfig(version="v3.0", crf=1))
    dataset = lerobot.LeRobotDataset("local/sim", root=tmp_path / "d", video_backend="pyav")
    assert len(dataset) == len(episode.steps) + 9
    row = dataset[len(episode.steps) + 4]
    step = second.steps[4]
    assert row["task"] == episode.task.instruction
    np.testing.assert_array_equal(row["action"].numpy(), step.action)
    image = row["observation.images.front"].permute(1, 2, 0).numpy() * 255
    difference = np.abs(image - step.observation.front_rgb_HWC.astype(float))
    assert difference.mean() < 6.0, "the right frame, through chroma subsampling"


def test_no_opengl_is_said_in_one_line() -> None:
    code = (
        "import mujoco\n"
        "from molmoact_data.errors import UserError\n"
        "from molmoact_robot.tabletop.view import SceneRenderer\n"
        "try:\n"
        "    SceneRenderer(mujoco.MjModel.from_xml_string('<mujoco/>'), (8, 8), shadows=False)\n"
        "except UserError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env={**os.environ, "MUJOCO_GL": "disable"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.startswith("cannot render: no OpenGL here")
    assert "apt-get install libegl1" in done.stdout


@needs_gl
def test_an_existing_dataset_is_not_overwritten(tmp_path, episode) -> None:
    with pytest.raises(UserError, match="never overwritten"):
        write_dataset(tmp_path, [episode], WriteConfig())


def test_depth_png_is_exact_to_a_quarter_millimetre() -> None:
    depth = np.random.default_rng(0).uniform(0.1, 5.0, (9, 7)).astype(np.float32)
    png = np.asarray(Image.open(io.BytesIO(encode_depth_png(depth)))).astype(np.uint16)
    np.testing.assert_array_equal(png, depth_to_u16(depth))
    np.testing.assert_allclose(depth_from_u16(png), depth, atol=0.000251)


# --- what ships -----------------------------------------------------------------------------------


def test_the_demo_dataset_is_small_and_whole() -> None:
    files = [f for f in DEMO.rglob("*") if f.is_file()]
    assert sum(f.stat().st_size for f in files) < 4e6
    info = json.loads((DEMO / "meta/info.json").read_text())
    episodes = [json.loads(x) for x in (DEMO / "meta/episodes.jsonl").read_text().splitlines()]
    assert info["total_episodes"] == len(episodes) == 6
    for episode in episodes:
        number = episode["episode_index"]
        rows = pq.read_table(DEMO / f"data/chunk-000/episode_{number:06d}.parquet")
        assert rows.num_rows == episode["length"]
        assert rows["next.success"][-1].as_py() is episode["success"] is True
    lines = [json.loads(x) for x in (DEMO / "meta/cameras.jsonl").read_text().splitlines()]
    front = [x for x in lines if x["camera"].endswith("front")]
    assert [x["episode_index"] for x in front] == list(range(6))


def test_the_demo_dataset_points_where_its_calibration_says() -> None:
    for line in (DEMO / "meta/cameras.jsonl").read_text().splitlines():
        view = json.loads(line)
        if not view["camera"].endswith("front"):
            continue
        number = view["episode_index"]
        rows = pq.read_table(DEMO / f"data/chunk-000/episode_{number:06d}.parquet").to_pydict()
        grip = np.array(rows["observation.state"])[:, :3]
        to_camera = np.array(view["world_to_camera"])
        homogeneous = np.array(view["intrinsics"]) @ (
            to_camera[:3, :3] @ grip.T + to_camera[:3, 3:]
        )
        pixel = (homogeneous[:2] / homogeneous[2] - 0.5).T
        np.testing.assert_allclose(pixel, rows["observation.gripper_pixel"], atol=1e-2)


def test_the_calm_world_has_one_look_and_nothing_else_on_the_table() -> None:
    """Of both splits, and one start of the arm; objects and places differ as ever."""
    rollouts = [
        start_rollout(seed, EpisodeConfig(split=split, family="pick", variety="calm"))
        for split in ("train", "test")
        for seed in range(2)
    ]
    assert len({repr(r.look) for r in rollouts}) == 1
    assert [len(r.task.objects) for r in rollouts] == [1] * 4
    assert len({r.task.objects[0].xy_m for r in rollouts}) == 4
    # The arm sags by less than a tenth of a millimetre while the objects settle.
    starts = np.stack([r.world.arm.grip_pose()[0] for r in rollouts])
    np.testing.assert_allclose(starts - starts[0], 0, atol=1e-4)
    assert all(act_only(seed, EpisodeConfig(family="pick", variety="calm"))[1] for seed in range(3))


def test_demonstrators_of_the_calm_world_are_pushed_and_record_what_they_meant() -> None:
    """The recorded action depends on the state alone; the arm's way does not follow from the recorded actions."""
    rollout = start_rollout(5, EpisodeConfig(family="pick", variety="calm"))
    motions, still = [], 0
    for motion in rollout.motions:
        rollout.world.arm.step(motion.executed_7)
        motions.append(motion)
        still += not motion.action_7[:6].any()
    differ = [m for m in motions if (m.action_7 != m.executed_7).any()]
    assert {m.phase for m in differ} <= {"reach", "lift"}
    assert 0 < len(differ) < len(motions) / 2
    assert still == 5, "two while the fingers close, three at the end"
    assert all(m.action_7[6] == 1 for m in motions if m.phase == "reach"), "open, whatever happens"
    full = start_rollout(5, EpisodeConfig(family="pick"))
    for motion in full.motions:
        full.world.arm.step(motion.executed_7)
        assert (motion.action_7 == motion.executed_7).all()
