"""Print what pip has to install beside tritonbn itself, with all of its extras: no Triton over that of ROCm's torch.

ROCm's and XPU's builds of torch bring Triton by another name (triton-rocm, triton-xpu), which does not keep pip from
installing PyPI's `triton`, for CUDA, into the same folder.
"""

from importlib.metadata import packages_distributions, requires

from pip._vendor.packaging.requirements import Requirement


def required(declared: list[str], providers: list[str]) -> list[str]:
    """Those of the requirements that hold here, where these distributions provide a Triton."""
    brought = {"triton"} if set(providers) - {"triton"} else set()
    wanted = [Requirement(each) for each in declared]
    extras = ("", "plot", "bench", "test")
    return [
        f"{each.name}{each.specifier}"
        for each in wanted
        if each.name not in {"tritonbn"} | brought
        and (each.marker is None or any(each.marker.evaluate({"extra": extra}) for extra in extras))
    ]


if __name__ == "__main__":
    print(*required(requires("tritonbn"), packages_distributions().get("triton", [])))
