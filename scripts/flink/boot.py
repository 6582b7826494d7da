#!/usr/bin/env python3
"""Start one Beam SDK worker the way a runner's container contract asks for it, without a container.

Flink's `--environment_type=PROCESS` runs this file once per worker with four flags (`--id` and the
endpoints). The worker's environment is already installed (it is the one that runs this file), so
nothing is staged: the pipeline options are fetched from the runner's provision service, put where
the Python harness looks for them, and this process becomes the harness. Beam is imported once: that is
most of the time that a worker takes to start.
"""

from __future__ import annotations

import argparse
import os
import sys

import grpc
from apache_beam.portability.api import (
    beam_provision_api_pb2,
    beam_provision_api_pb2_grpc,
    endpoints_pb2,
)
from apache_beam.runners.worker import sdk_worker_main
from google.protobuf import json_format, text_format

PROVISION_TIMEOUT_S = 60


def provision_info(endpoint: str, worker_id: str) -> beam_provision_api_pb2.ProvisionInfo:
    """What the runner wants this worker to know: options, endpoints, capabilities."""
    with grpc.insecure_channel(endpoint) as channel:
        stub = beam_provision_api_pb2_grpc.ProvisionServiceStub(channel)
        response = stub.GetProvisionInfo(
            beam_provision_api_pb2.GetProvisionInfoRequest(),
            metadata=[("worker_id", worker_id)],
            timeout=PROVISION_TIMEOUT_S,
        )
    return response.info


def harness_environment(
    info: beam_provision_api_pb2.ProvisionInfo, flags: argparse.Namespace
) -> dict[str, str]:
    """The variables that `sdk_worker_main` reads; a flag wins over the provisioned endpoint."""
    logging_url = flags.logging_endpoint or info.logging_endpoint.url
    control_url = flags.control_endpoint or info.control_endpoint.url
    environment = {
        "WORKER_ID": flags.id,
        "PIPELINE_OPTIONS": json_format.MessageToJson(info.pipeline_options),
        "SEMI_PERSISTENT_DIRECTORY": flags.semi_persist_dir,
        "LOGGING_API_SERVICE_DESCRIPTOR": _descriptor(logging_url),
        "CONTROL_API_SERVICE_DESCRIPTOR": _descriptor(control_url),
        "RUNNER_CAPABILITIES": " ".join(info.runner_capabilities),
    }
    if info.HasField("status_endpoint"):
        environment["STATUS_API_SERVICE_DESCRIPTOR"] = _descriptor(info.status_endpoint.url)
    return environment


def _descriptor(url: str) -> str:
    return text_format.MessageToString(endpoints_pb2.ApiServiceDescriptor(url=url))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--id", required=True)
    parser.add_argument("--provision_endpoint", required=True)
    parser.add_argument("--logging_endpoint")
    parser.add_argument("--control_endpoint")
    parser.add_argument("--artifact_endpoint")
    parser.add_argument("--semi_persist_dir", default="/tmp")
    flags = parser.parse_args()
    info = provision_info(flags.provision_endpoint, flags.id)
    os.environ.update(harness_environment(info, flags))
    sdk_worker_main.main(sys.argv[:1])


if __name__ == "__main__":
    main()
