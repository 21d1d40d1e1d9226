#!/usr/bin/env python3
"""Compiles the CUDA kernels for every architecture and holds what came out against tests/cuda_budget.json: registers, spills, stack,
and the instructions that the design rests on. Without nvcc: SKIPPED. Unchanged sources are not compiled again.

Usage: tests/cuda_compile.py [--build-dir DIR] [--print]      --print: the registers of each kernel, as the budget has them
"""
import argparse
import concurrent.futures
import hashlib
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[1]
ARCHITECTURES = ("80", "90", "100")
FLAGS = ["-std=c++20", "-O3", "--expt-relaxed-constexpr", "-fmad=false", f"-I{ROOT}", "-Xptxas", "-v"]
INSTRUCTIONS = {  # file: patterns that its PTX must have
    "paged_attention.cu": [r"cp\.async\.cg\.shared\.global \[[^]]*\], \[[^]]*\], 16", r"mma\.sync\.aligned\.m16n8k16\S*\.bf16",
                           r"mma\.sync\.aligned\.m16n8k16\S*\.f16\.f16", r"ldmatrix\.sync\.aligned\.m8n8\.x4\.shared",
                           r"ldmatrix\.sync\.aligned\.m8n8\.x4\.trans", r"ex2\.approx\.ftz\.f32",
                           r"cp\.async\.ca\.shared\.global \[[^]]*\], \[[^]]*\], 4", r"fma\.rn\.bf16x2"],
    "gemm.cu": [r"ld\.global\.nc\.L1::no_allocate\.v4\.u32", r"cp\.async\.cg\.shared\.global \[[^]]*\], \[[^]]*\], 16",
                r"mma\.sync\.aligned\.m16n8k16\S*\.bf16", r"ld\.shared\.v4"],
}


def find_nvcc():
    return os.environ.get("NVCC") or shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")


def sources_hash(nvcc):
    digest = hashlib.sha256(subprocess.run([nvcc, "--version"], check=True, capture_output=True).stdout)
    for path in sorted((ROOT / "kernels").glob("*.h")) + sorted((ROOT / "kernels/cuda").iterdir()) + [pathlib.Path(__file__)]:
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def kernel_name(mangled):
    """attention_kernel<bf16, 128, 4> from the name that ptxas prints."""
    plain = subprocess.run(["c++filt", mangled], check=True, capture_output=True, text=True).stdout.strip()
    name = re.search(r"(\w+_kernel(<[^>]*>)?)", re.sub(r"\(headroom::DType\)(\d)", r"DType\1", plain)).group(1)
    return name.replace("DType1", "bf16").replace("DType2", "fp16").replace("DType3", "int8")


def compile_file(nvcc, path):
    """The kernels of one file, {(kernel, arch): (registers, stack bytes, spilled bytes)}, and its PTX."""
    with tempfile.TemporaryDirectory() as keep:
        gencode = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in ARCHITECTURES]
        gencode.append(f"-gencode=arch=compute_{ARCHITECTURES[-1]},code=compute_{ARCHITECTURES[-1]}")
        run = subprocess.run([nvcc, *FLAGS, *gencode, "--keep", "--keep-dir", keep, "-c", str(path), "-o", f"{keep}/out.o"],
                             capture_output=True, text=True)
        if run.returncode != 0:
            raise RuntimeError(f"{path.name}: nvcc failed:\n{run.stderr}")
        ptx = "\n".join(p.read_text() for p in pathlib.Path(keep).glob("*.ptx"))
        warnings = [line for line in run.stderr.split("\n") if "warning" in line]
    kernels, key = {}, None
    for line in (run.stderr + run.stdout).split("\n"):
        if entry := re.search(r"Compiling entry function '(\w+)' for 'sm_(\w+)'", line):
            key = (kernel_name(entry.group(1)), entry.group(2))
        elif frame := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line):
            kernels.setdefault(key, {}).update(stack=int(frame.group(1)), spilled=int(frame.group(2)) + int(frame.group(3)))
        elif used := re.search(r"Used (\d+) registers", line):
            kernels.setdefault(key, {}).update(registers=int(used.group(1)))
    return {"kernels": [[name, arch, k["registers"], k["stack"], k["spilled"]] for (name, arch), k in kernels.items() if name],
            "missing": [p for p in INSTRUCTIONS.get(path.name, []) if not re.search(p, ptx)], "warnings": warnings}


def compile_all(nvcc, cache):
    key = sources_hash(nvcc)
    known = json.loads(cache.read_text()) if cache.exists() else {}
    if known.get("hash") == key:
        return known["files"]
    paths = sorted((ROOT / "kernels/cuda").glob("*.cu"), key=lambda p: -p.stat().st_size)
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        files = dict(zip([p.name for p in paths], pool.map(lambda p: compile_file(nvcc, p), paths)))
    cache.parent.mkdir(parents=True, exist_ok=True)
    cache.write_text(json.dumps({"hash": key, "files": files}))
    return files


def problems(files, budget):
    found, seen = [], set()
    for name, result in files.items():
        found += [f"{name}: no instruction like {pattern} in the PTX" for pattern in result["missing"]]
        found += [f"{name}: {warning}" for warning in result["warnings"]]
        for kernel, arch, registers, stack, spilled in result["kernels"]:
            seen.add(kernel)
            allowed = budget["registers"].get(kernel)
            if allowed is None:
                found.append(f"{kernel} is not in tests/cuda_budget.json")
            elif registers > allowed:
                found.append(f"{kernel} for sm_{arch} takes {registers} registers, the budget is {allowed}")
            if spilled or (stack and kernel not in budget["may_use_stack"]):
                found.append(f"{kernel} for sm_{arch} has {stack} bytes of stack and spills {spilled}")
    found += [f"{kernel} of tests/cuda_budget.json was not compiled" for kernel in budget["registers"] if kernel not in seen]
    return found


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--build-dir", type=pathlib.Path, default=ROOT / "build")
    parser.add_argument("--print", action="store_true")
    arguments = parser.parse_args()
    nvcc = find_nvcc()
    if nvcc is None:
        print("SKIPPED: the CUDA kernels were not compiled for a GPU: no nvcc")
        return 0
    files = compile_all(nvcc, arguments.build_dir / "cuda_compile.json")
    if arguments.print:
        most = {}
        for result in files.values():
            for kernel, _, registers, _, _ in result["kernels"]:
                most[kernel] = max(most.get(kernel, 0), registers)
        print(json.dumps(dict(sorted(most.items())), indent=2))
        return 0
    found = problems(files, json.loads((ROOT / "tests/cuda_budget.json").read_text()))
    for line in found:
        print(line)
    compiled = sum(len(result["kernels"]) for result in files.values())
    print(f"CHECKS {compiled} passed, {len(found)} failed   (kernels for sm_{', sm_'.join(ARCHITECTURES)})")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
