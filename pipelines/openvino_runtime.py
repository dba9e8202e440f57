"""OpenVINO as a library, without the usage reports that it would send by default.

OpenVINO reports every import and conversion to its makers through the package `openvino_telemetry`, if that is there.
A service that scores its users' texts must not report anything to anyone, so it is absent here.
"""

import sys
from types import ModuleType

__all__ = ["openvino_precisions", "openvino_runtime"]

_PRECISIONS = {"FP32": "fp32", "BF16": "bf16"}


def openvino_runtime() -> ModuleType:
    """The package `openvino`.

    Raises:
        ImportError: it is not installed.
    """
    if "openvino" not in sys.modules:
        # None in this table makes `import openvino_telemetry` fail; OpenVINO then takes a stand-in that sends nothing.
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    import openvino

    return openvino  # type: ignore[no-any-return]


def openvino_precisions() -> frozenset[str]:
    """The dtypes in which OpenVINO multiplies natively on this machine's CPU; empty where it is not installed."""
    try:
        runtime = openvino_runtime()
    except ImportError:
        return frozenset()
    found = runtime.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return frozenset(_PRECISIONS[name] for name in found if name in _PRECISIONS)
