"""What GPUs can do at most: dense bfloat16 matrix products with float32 sums, by their makers' data
sheets, in TFLOP/s. No GPU reaches its figure; it is what MFU is a share of."""

from collections.abc import Mapping

PEAKS: Mapping[str, float] = {
    "B200": 2250,
    "GH200": 989,
    "H200": 989,
    "H100 PCIe": 756,
    "H100 NVL": 835,
    "H100": 989,
    "H800": 989,
    "H20": 148,
    "A100": 312,
    "A800": 312,
    "A40": 150,
    "A30": 165,
    "A10G": 70,
    "A10": 125,
    "L40S": 362,
    "L40": 181,
    "L4": 121,
    "RTX 6000 Ada": 182,
    "RTX A6000": 155,
    "RTX 4090": 165,
    "RTX 3090": 71,
}
"""A part of a device's name to its figure; the first that stands in the name counts."""


def peak_of(device: str) -> float | None:
    """FLOP/s of a device by the name that its driver tells; None where it is not known."""
    words = device.replace("-", " ").split()
    for name, figure in PEAKS.items():
        wanted = name.split()
        if all(word in words for word in wanted):
            return figure * 1e12
    return None
