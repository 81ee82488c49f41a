"""Compile the step of `scaling.py` for eight accelerators that need not be there.

Run by `scaling.py`, in an environment with the compiler: `python _ahead.py tpu` or
`python _ahead.py cuda` prints what the programs communicate, as JSON.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import _sharded
import jax
from jax.experimental import topologies

COUNT = 8
CASES = ("FiniteDifference", "CG(3)", "Unrolled", "Unrolled(mixed=True)")
H100 = """
platform_name: "CUDA"
device_description_str: "NVIDIA H100 80GB HBM3"
dnn_version_info { major: 9 minor: 8 }
runtime_version { major: 12 minor: 9 }
gpu_device_info {
  cuda_compute_capability { major: 9 }
  core_count: 132  fpus_per_core: 128  clock_rate_ghz: 1.98
  threads_per_block_limit: 1024  threads_per_warp: 32  threads_per_core_limit: 2048
  shared_memory_per_block: 49152  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  registers_per_core_limit: 65536  registers_per_block_limit: 65536
  block_dim_limit_x: 2147483647  block_dim_limit_y: 65535  block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000  l2_cache_size: 52428800
  device_memory_size: 84978434048
}
"""
"""What the compiler asks of a GPU, in its own format."""


def devices_of(platform: str) -> tuple[str, Any, dict[str, Any]]:
    """Return the name of a topology, its devices, and options for its compiler."""
    if platform == "tpu":
        return "TPU v5e", topologies.get_topology_desc("v5e:2x4", "tpu").devices, {}
    import jax_plugins.xla_cuda12  # registers itself where it finds no GPU, too

    del jax_plugins
    found = topologies.get_topology_desc(
        platform=platform, target_config=H100, topology=f"1x1x{COUNT}"
    )
    # There is no GPU on which kernels could be tried.
    return "H100", found.devices, {"xla_gpu_autotune_level": "0"}


def main() -> None:
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", COUNT)
    mesh = _sharded.mesh_of(jax.devices())
    name, devices, options = devices_of(sys.argv[1])
    target = _sharded.mesh_of(devices)
    rows = []
    for case in CASES:
        method, evaluations, _ = _sharded.CASES[case]
        row: dict[str, Any] = {"case": case, "evaluations": evaluations}
        for rules in ("replicated", "fsdp"):
            engine = _sharded.engine_of(method)
            size = 512 * COUNT
            program = _sharded.compiled(engine, rules, mesh, size, target, options)
            row[rules] = _sharded.communication(program, COUNT)
        rows.append(row)
    print(json.dumps({"compiler": name, "rows": rows}))


if __name__ == "__main__":
    main()
