#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""A stock grpcio client, from the .proto alone: lists the nodes and submits a job.

usage: test_python_client.py ADDRESS JOB_FILE     ADDRESS: unix:/PATH/fp8d.sock

Exits 77 (skipped) where grpcio or its tools are not installed.
"""
import os
import re
import sys
import tempfile
import uuid

try:
    import grpc
    from grpc_tools import protoc
except ImportError as e:
    print(f"skipped: {e}")
    sys.exit(77)

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def check(what, found, condition):
    if not condition:
        sys.exit(f"FAILED: {what}: found {found!r}")
    print(f"ok: {what}")


def read_job(path):
    """Relative paths mean nothing to a controller elsewhere: they are made absolute here, as fp8ctl does."""
    here = os.path.dirname(os.path.abspath(path))
    with open(path, encoding="utf-8") as f:
        return re.sub(r"^(\s+(?:path|dir):\s*)(?!/)(\S+)", lambda m: m[1] + os.path.normpath(os.path.join(here, m[2])), f.read(), flags=re.M)


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    address, job_file = sys.argv[1:]
    with tempfile.TemporaryDirectory() as out:
        proto = os.path.join(ROOT, "proto")
        if protoc.main(["protoc", f"-I{proto}", f"--python_out={out}", f"--grpc_python_out={out}", os.path.join(proto, "fp8ctl.proto")]) != 0:
            sys.exit("FAILED: fp8ctl.proto does not compile for Python")
        sys.path.insert(0, out)
        import fp8ctl_pb2 as pb
        import fp8ctl_pb2_grpc as stubs

        with grpc.insecure_channel(address) as channel:
            cluster = stubs.ClusterStub(channel)
            status = cluster.Status(pb.StatusRequest(), timeout=10)
            check("a controller answers", status.version, status.version != "")
            nodes = cluster.ListNodes(pb.ListNodesRequest(), timeout=10).nodes
            check("it lists its nodes", len(nodes), len(nodes) == status.nodes_total)
            request = pb.SubmitRequest(request_id=str(uuid.uuid4()), job_file=read_job(job_file), file_name=os.path.abspath(job_file))
            job = cluster.Submit(request, timeout=30).job
            check("a job is taken", job.id, job.id > 0)
            check("the same request again is the same job", job.id, cluster.Submit(request, timeout=30).job.id == job.id)
            got = cluster.GetJob(pb.GetJobRequest(id=job.id), timeout=10)
            check("it can be asked for", got.name, got.id == job.id and got.name == job.name and got.steps > 0)
            jobs = cluster.ListJobs(pb.ListJobsRequest(all=True), timeout=10).jobs
            check("it is in the list", [j.id for j in jobs], job.id in [j.id for j in jobs])
            try:
                cluster.GetJob(pb.GetJobRequest(id=job.id + 1000000), timeout=10)
                sys.exit("FAILED: a job that is not there was found")
            except grpc.RpcError as e:
                check("a job that is not there", e.code(), e.code() == grpc.StatusCode.NOT_FOUND)
            try:
                cluster.Submit(pb.SubmitRequest(request_id=str(uuid.uuid4()), job_file="no_such_key: 1\n", file_name="bad.yaml"), timeout=10)
                sys.exit("FAILED: a bad job file was taken")
            except grpc.RpcError as e:
                check("a bad job file", e.details(), e.code() == grpc.StatusCode.INVALID_ARGUMENT and "bad.yaml:1" in e.details())


main()
