"""CUDA kernels as LLVM IR, and that IR as machine code of this machine's processor."""

from __future__ import annotations

import ctypes
import itertools
import re
from types import SimpleNamespace

import llvmlite.binding as llvm

CAPABILITY = 9, 0
# What `@place` holds of a thread, its block and the grid, along three axes each.
PLACES = "tid", "ntid", "ctaid", "nctaid"
FLOATS = ("f", "float", "f32"), ("", "double", "f64")
SHARED = re.compile(r'^@"(\S+)" = addrspace\(3\) global \[(\d+) x (\w+)\]', re.MULTILINE)
# Arrays in the shared memory that a launch asks for: all begin where it does.
ASKED_FOR = re.compile(r'^@"(\S+)" = external addrspace\(3\) global \[0 x .*\n', re.MULTILINE)
MOST_ASKED_FOR = 48 << 10
SIZES = {"i8": 1, "i16": 2, "i32": 4, "i64": 8, "half": 2, "float": 4, "double": 8}


def define(result, name, parameters, *lines):
    """Return a function that is inlined wherever it is called."""
    body = "".join(f"  {line}\n" for line in lines)
    return f"define {result} @{name}({parameters}) alwaysinline {{\n{body}}}\n"


def support():
    """Return what kernels call: the place of a thread, NVIDIA's functions, conversions of halves.

    Those of bfloat16 are numba-cuda's, which take and return by address.
    """
    yield "@place = global [12 x i32] zeroinitializer\n"
    for number, (name, axis) in enumerate(itertools.product(PLACES, "xyz")):
        yield define(
            "i32", f"nvvm.read.ptx.sreg.{name}.{axis}", "",
            f"%v = load i32, ptr getelementptr (i32, ptr @place, i32 {number})", "ret i32 %v",
        )  # fmt: skip
    for letter, kind, short in FLOATS:
        for name, own in [("fmin", "minnum"), ("fmax", "maxnum")]:
            yield f"declare {kind} @llvm.{own}.{short}({kind}, {kind})\n"
            yield define(
                kind, f"__nv_{name}{letter}", f"{kind} %a, {kind} %b",
                f"%c = call {kind} @llvm.{own}.{short}({kind} %a, {kind} %b)", f"ret {kind} %c",
            )  # fmt: skip
        yield f"declare {kind} @llvm.fabs.{short}({kind})\n"
        yield define(
            kind, f"__nv_fabs{letter}", f"{kind} %a",
            f"%b = call {kind} @llvm.fabs.{short}({kind} %a)", f"ret {kind} %b",
        )  # fmt: skip
        yield define(
            kind, f"cvt.{short}.f16", "i16 %a",
            "%b = bitcast i16 %a to half", f"%c = fpext half %b to {kind}", f"ret {kind} %c",
        )  # fmt: skip
        yield define(
            "i16", f"cvt.f16.{short}", f"{kind} %a",
            f"%b = fptrunc {kind} %a to half", "%c = bitcast half %b to i16", "ret i16 %c",
        )  # fmt: skip
    yield define(
        "i16", "bfloat_of", "float %a",  # to nearest, ties to even
        "%bits = bitcast float %a to i32",
        "%high = lshr i32 %bits, 16",
        "%odd = and i32 %high, 1",
        "%half = add i32 %odd, 32767",
        "%sum = add i32 %bits, %half",
        "%rounded = lshr i32 %sum, 16",
        "%narrow = trunc i32 %rounded to i16",
        "%nan = fcmp uno float %a, %a",
        "%b = select i1 %nan, i16 32767, i16 %narrow",
        "ret i16 %b",
    )  # fmt: skip
    for letter, read in [
        ("f", ["%a = load float, ptr %from"]),
        ("i", ["%i = load i32, ptr %from", "%a = sitofp i32 %i to float"]),
    ]:
        yield define(
            "i32", f"_ZN13__nv_bfloat16C1E{letter}_nbst", "ptr %ret, ptr %self, ptr %from",
            *read, "%b = call i16 @bfloat_of(float %a)", "store i16 %b, ptr %self", "ret i32 0",
        )  # fmt: skip
    yield define(
        "i32", "____nv_bfloat16__ZNK13__nv_bfloat16cvfEv_1", "ptr %ret, ptr %self",
        "%a = load i16, ptr %self", "%b = zext i16 %a to i32", "%c = shl i32 %b, 16",
        "store i32 %c, ptr %ret", "ret i32 0",
    )  # fmt: skip


def ir_of(function, types):
    """Return the LLVM IR that numba-cuda hands to NVIDIA's compiler for a kernel."""
    from numba import cuda
    from numba.cuda import dispatcher
    from numba.cuda import types as known
    from numba.cuda.cudadrv import nvvm

    class Taken(Exception):
        pass

    def take(irs, **options):
        raise Taken(irs)

    get_current_device, compile_ir = dispatcher.get_current_device, nvvm.compile_ir
    dispatcher.get_current_device = lambda: SimpleNamespace(compute_capability=CAPABILITY)
    nvvm.compile_ir = take
    try:
        cuda.compile(
            function, known.void(*types), cc=CAPABILITY, device=False, abi="numba", output="ptx"
        )
    except Taken as taken:
        return taken.args[0]
    finally:
        dispatcher.get_current_device, nvvm.compile_ir = get_current_device, compile_ir
    raise AssertionError("numba-cuda compiles in another way than this knows")


def adapted(ir):
    """Return IR for NVIDIA's compiler as IR for this processor."""
    ir = re.sub(r'^(target |!|@"llvm.used").*\n', "", ir, flags=re.MULTILINE)
    for name in ASKED_FOR.findall(ir):
        ir = ir.replace(f'@"{name}"', "@asked_for")
    ir, asks = re.subn(r"^@asked_for = .*\n", "", ir, flags=re.MULTILINE)
    if asks:
        kind = f"[{2 * MOST_ASKED_FOR} x i8]"
        ir += f"\n@asked_for = weak addrspace(3) global {kind} zeroinitializer, align 16\n"
    size = r"call i32 asm\s.*%dynamic_smem_size;.*"  # for an array's length
    ir = re.sub(size, f"add i32 0, {MOST_ASKED_FOR}", ir)
    ir = re.sub(r", !\w+ !\d+", "", ir).replace("llvm.nvvm.", "nvvm.")
    ir = re.sub(r"= (fadd|fsub|fmul) ", r"= \1 contract ", ir)  # as NVIDIA's compiler fuses them
    assembly = r'call (\w+) asm\s+"cvt(?:\.rn)?\.(\w+)\.(\w+) [^"]*", "[^"]*"\((\w+) '
    for result, to, of, given in set(re.findall(assembly, ir)):
        ir += f"\ndeclare {result} @cvt.{to}.{of}({given})"
    return re.sub(assembly, r"call \1 @cvt.\2.\3(\4 ", ir)


class MachineCode:
    """A kernel as machine code, and the memory that it knows by name."""

    def __init__(self, irs):
        irs = [adapted(ir) for ir in irs]
        assert not any(" asm " in ir for ir in irs)
        [(name, parameters)] = re.findall(r'^define void @"?([^"(]+)"?\((.*)\)$', irs[0], re.M)
        self.types = re.findall(r"(\w+) %", parameters)
        engine = self.engine = compiled(["".join(support()), *irs, entry(name, self.types)])
        self.enter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(engine.get_function_address("enter"))
        self.place = (ctypes.c_uint32 * 12).from_address(engine.get_global_value_address("place"))
        self.shared = [
            (engine.get_global_value_address(name), int(count) * SIZES[kind])
            for ir in irs
            for name, count, kind in SHARED.findall(ir)
        ]
        asks = any("@asked_for" in ir for ir in irs)
        self.asked_for = engine.get_global_value_address("asked_for") if asks else None
        self.has_barriers = any("nvvm.barrier0" in ir for ir in irs)


def entry(name, types):
    """Return a function that calls a kernel with parameters of types, of which it gets addresses.

    So a launch has them: each number in eight bytes, and an array of where they are.
    """
    lines = [
        f"%p{n} = getelementptr ptr, ptr %parameters, i32 {n}\n"
        f"  %a{n} = load ptr, ptr %p{n}\n  %v{n} = load {kind}, ptr %a{n}"
        for n, kind in enumerate(types)
    ]
    given = ", ".join(f"{kind} %v{n}" for n, kind in enumerate(types))
    header = f'declare void @"{name}"({", ".join(types)})\n'
    lines += [f'call void @"{name}"({given})', "ret void"]
    return header + define("void", "enter", "ptr %parameters", *lines)


def compiled(irs):
    """Return what runs IR, compiled together."""
    machine = llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=2
    )
    module, *others = [llvm.parse_assembly(ir) for ir in irs]
    for other in others:
        module.link_in(other)
    module.verify()
    passes = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(2))
    passes.getModulePassManager().run(module, passes)
    engine = llvm.create_mcjit_compiler(module, machine)
    engine.finalize_object()
    return engine
