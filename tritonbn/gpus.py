"""GPUs as data: what each has, by the document of its maker that says so."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, eq=False)
class Device:
    """A GPU; "SM" is NVIDIA's word, AMD's is CU."""

    name: str
    arch: str
    """As targets.target() takes it."""
    sm_count: int
    threads: int
    """Most threads an SM holds."""
    programs: int
    """Most programs an SM holds."""
    l2_bytes: int
    """Of the L2; where a GPU has several dies, of one die's."""
    bandwidth: float
    """Of the memory, bytes per second."""
    clock: float
    """Of the SMs under load, in hertz."""
    shared_bytes: int
    """Of shared memory, an SM."""
    reserved_shared: int = 0
    """Bytes of it that the driver keeps of every program."""
    registers: int = 65536
    """32-bit registers per SM."""
    register_step: int = 8
    """Registers per thread are a multiple of this."""
    partitions: int = 4
    """Parts of an SM, each with its warps and its share of the registers."""
    warp_size: int = 32
    concurrent: bool = True
    """Whether programs of a launch run side by side, so that one may wait for another that started later."""
    dies: int = 1
    """Parts of the GPU, at most, among which programs are dealt out in turn: each starts its own, ever so late."""
    source: str = ""
    """The documents that the numbers are from."""

    @property
    def backend(self) -> str:
        """Triton's name of the maker's toolchain."""
        return "hip" if self.arch.startswith("gfx") else "cuda"

    @property
    def cooperative(self) -> bool:
        """Whether all programs of a cooperative launch run, or none.

        HIP submits it like any other launch (ROCm's clr): beside one that waits both might hold what the other lacks.
        """
        return self.concurrent and self.backend == "cuda"

    def places(self, threads: int, registers: int, shared: int) -> int:
        """Programs that an SM holds at once, of so many threads, registers per thread and bytes of shared memory."""
        warp = self.warp_size * self.register_step * math.ceil(registers / self.register_step)
        warps = self.partitions * (self.registers // self.partitions // warp)
        return min(
            warps * self.warp_size // threads,
            self.threads // threads,
            self.programs,
            self.shared_bytes // max(1, shared + self.reserved_shared),
        )

    def most_registers(self, threads: int, programs: int) -> int:
        """Registers per thread with which an SM still holds so many programs of so many threads."""
        warps = math.ceil(programs * threads / self.warp_size / self.partitions)
        return self.registers // self.partitions // (warps * self.warp_size) // self.register_step * self.register_step


CDNA = {"threads": 2048, "programs": 32, "shared_bytes": 64 << 10, "registers": 131072, "warp_size": 64}

RDNA_3 = {"register_step": 24, "partitions": 2}

LIMITS = {
    "sm_70": {"threads": 2048, "programs": 32, "shared_bytes": 96 << 10},
    "sm_75": {"threads": 1024, "programs": 16, "shared_bytes": 64 << 10},
    "sm_80": {"threads": 2048, "programs": 32, "shared_bytes": 164 << 10, "reserved_shared": 1 << 10},
    "sm_86": {"threads": 1536, "programs": 16, "shared_bytes": 100 << 10, "reserved_shared": 1 << 10},
    "sm_89": {"threads": 1536, "programs": 24, "shared_bytes": 100 << 10, "reserved_shared": 1 << 10},
    "sm_90": {"threads": 2048, "programs": 32, "shared_bytes": 228 << 10, "reserved_shared": 1 << 10},
    "sm_100": {"threads": 2048, "programs": 32, "shared_bytes": 228 << 10, "reserved_shared": 1 << 10},
    "sm_120": {"threads": 1536, "programs": 24, "shared_bytes": 100 << 10, "reserved_shared": 1 << 10},
    "gfx90a": CDNA,
    "gfx942": CDNA,
    "gfx950": CDNA | {"shared_bytes": 160 << 10},
    "gfx1100": RDNA_3 | {"threads": 1024, "programs": 32, "shared_bytes": 64 << 10, "registers": 98304},
}
"""What every SM of an architecture has.

NVIDIA: CUDA C++ Programming Guide, technical specifications per compute capability:
https://docs.nvidia.com/cuda/cuda-c-programming-guide/#features-and-technical-specifications
AMD: https://rocm.docs.amd.com/en/latest/reference/gpu-specs.html and getVGPRAllocGranule in LLVM's AMDGPUBaseInfo.cpp.
"""

IMAGES = "https://images.nvidia.com"
NVIDIA = "https://www.nvidia.com/content"
RESOURCES = "https://resources.nvidia.com"
AMD = "https://www.amd.com/content/dam/amd/en/documents"

VOLTA = f"V100 whitepaper: {IMAGES}/content/volta-architecture/pdf/volta-architecture-whitepaper.pdf"
T4 = f"T4 data sheet: {NVIDIA}/dam/en-zz/Solutions/Data-Center/tesla-t4/t4-tensor-core-datasheet-951643.pdf"
AMPERE = (
    f"A100 whitepaper: {IMAGES}/aem-dam/en-zz/Solutions/data-center/nvidia-ampere-architecture-whitepaper.pdf; "
    f"data sheet: {NVIDIA}/dam/en-zz/Solutions/Data-Center/a100/pdf/nvidia-a100-datasheet-nvidia-us-2188504-web.pdf"
)
GA102 = f"GA102 whitepaper: {NVIDIA}/PDF/nvidia-ampere-ga-102-gpu-architecture-whitepaper-v2.1.pdf"
A10 = f"{GA102}; A10 data sheet: {NVIDIA}/dam/en-zz/Solutions/Data-Center/a10/pdf/a10-datasheet.pdf"
ADA = f"Ada whitepaper: {IMAGES}/aem-dam/Solutions/geforce/ada/nvidia-ada-gpu-architecture.pdf"
L4 = f"Ada whitepaper: {IMAGES}/aem-dam/Solutions/Data-Center/l4/nvidia-ada-gpu-architecture-whitepaper-v2.1.pdf"
L40S = f"{ADA}; L40S: https://www.nvidia.com/en-us/data-center/l40s/"
HOPPER = (
    f"H100 whitepaper: {RESOURCES}/en-us-tensor-core/gtc22-whitepaper-hopper; "
    f"data sheet: {RESOURCES}/en-us-tensor-core/nvidia-tensor-core-gpu-datasheet"
)
H200 = f"{HOPPER}; H200: https://www.nvidia.com/en-us/data-center/h200/"
BLACKWELL = (
    f"DGX B200 data sheet: {RESOURCES}/en-us-dgx-systems/dgx-b200-datasheet; "
    "Blackwell Tuning Guide: https://docs.nvidia.com/cuda/blackwell-tuning-guide/"
)
GEFORCE_50 = f"{IMAGES}/aem-dam/Solutions/geforce/blackwell/nvidia-rtx-blackwell-gpu-architecture.pdf"
CDNA_2 = f"CDNA 2 whitepaper: {AMD}/instinct-business-docs/white-papers/amd-cdna2-white-paper.pdf"
MI300X = f"MI300X data sheet: {AMD}/instinct-tech-docs/data-sheets/amd-instinct-mi300x-data-sheet.pdf"
MI325X = f"MI325X data sheet: {AMD}/instinct-tech-docs/product-briefs/instinct-mi325x-datasheet.pdf"
MI355X = f"MI355X brochure: {AMD}/instinct-tech-docs/product-briefs/amd-instinct-mi355x-gpu-brochure.pdf"
RX_7900 = "https://www.amd.com/en/products/graphics/desktops/radeon/7000-series/amd-radeon-rx-7900xtx.html"


def gpu(
    name: str, arch: str, sm_count: int, *, l2_mib: int, gb_s: int, ghz: float, source: str, dies: int = 1
) -> Device:
    """A row of the table, in the units of data sheets."""
    numbers = {"l2_bytes": l2_mib << 20, "bandwidth": gb_s * 1e9, "clock": ghz * 1e9}
    return Device(name, arch, sm_count, **LIMITS[arch], **numbers, dies=dies, source=source)


TABLE = (
    gpu("V100", "sm_70", 80, l2_mib=6, gb_s=900, ghz=1.53, source=VOLTA),
    gpu("T4", "sm_75", 40, l2_mib=4, gb_s=320, ghz=1.59, source=T4),
    gpu("A100", "sm_80", 108, l2_mib=40, gb_s=2040, ghz=1.41, source=AMPERE),
    gpu("A100 80GB PCIe", "sm_80", 108, l2_mib=40, gb_s=1935, ghz=1.41, source=AMPERE),
    gpu("A100 40GB", "sm_80", 108, l2_mib=40, gb_s=1555, ghz=1.41, source=AMPERE),
    gpu("RTX 3090", "sm_86", 82, l2_mib=6, gb_s=940, ghz=1.70, source=GA102),
    gpu("A10", "sm_86", 72, l2_mib=6, gb_s=600, ghz=1.70, source=A10),
    gpu("RTX 4090", "sm_89", 128, l2_mib=72, gb_s=1010, ghz=2.52, source=ADA),
    gpu("L40S", "sm_89", 142, l2_mib=96, gb_s=864, ghz=2.52, source=L40S),
    gpu("L4", "sm_89", 58, l2_mib=48, gb_s=300, ghz=2.04, source=L4),
    gpu("H100", "sm_90", 132, l2_mib=50, gb_s=3350, ghz=1.83, source=HOPPER),
    gpu("H100 PCIe", "sm_90", 114, l2_mib=50, gb_s=2000, ghz=1.755, source=HOPPER),
    gpu("H100 NVL", "sm_90", 132, l2_mib=50, gb_s=3900, ghz=1.785, source=HOPPER),
    gpu("H200", "sm_90", 132, l2_mib=50, gb_s=4800, ghz=1.83, source=H200),
    gpu("B200", "sm_100", 148, l2_mib=126, gb_s=8000, ghz=1.85, source=BLACKWELL),
    gpu("RTX 5090", "sm_120", 170, l2_mib=96, gb_s=1790, ghz=2.41, source=GEFORCE_50),
    gpu("MI250X", "gfx90a", 110, l2_mib=8, gb_s=1600, ghz=1.7, source=CDNA_2),
    gpu("MI250", "gfx90a", 104, l2_mib=8, gb_s=1600, ghz=1.7, source=CDNA_2),
    gpu("MI300X", "gfx942", 304, dies=8, l2_mib=4, gb_s=5300, ghz=2.1, source=MI300X),
    gpu("MI325X", "gfx942", 304, dies=8, l2_mib=4, gb_s=6000, ghz=2.1, source=MI325X),
    gpu("MI355X", "gfx950", 256, dies=8, l2_mib=4, gb_s=8000, ghz=2.4, source=MI355X),
    gpu("RX 7900 XTX", "gfx1100", 96, l2_mib=6, gb_s=960, ghz=2.5, source=RX_7900),
)
"""GPUs by architecture, the one that stands for it first; an MI250 or MI250X is one of its two dies.

The dies of an MI300X and its successors are their XCDs, each of which has a hardware queue of its own and starts every
eighth program of a launch: compute_tg_chunk_size and compute_current_logic_xcc_id in Linux's kfd_mqd_manager_v9.c.
"""
