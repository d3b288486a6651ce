"""Convert colors to the primaries of BT.709 and sRGB. HDR is tone-mapped to SDR.

Color spaces are named by the codes of ITU-T H.273, as files carry them. Light is that of the display: of SDR
by BT.1886, or by sRGB where the file says so. What was SDR keeps its curve.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

BT709, UNSPECIFIED = 1, 2
SRGB, PQ, HLG = 13, 16, 18
"""Transfer characteristics."""
HDR = frozenset({PQ, HLG})

_XY = {  # red, green and blue; white is D65
    5: ((0.64, 0.33), (0.29, 0.60), (0.15, 0.06)),  # BT.601 with 625 lines
    6: ((0.63, 0.34), (0.31, 0.595), (0.155, 0.07)),  # BT.601 with 525 lines
    7: ((0.63, 0.34), (0.31, 0.595), (0.155, 0.07)),
    9: ((0.708, 0.292), (0.17, 0.797), (0.131, 0.046)),  # BT.2020
    11: ((0.68, 0.32), (0.265, 0.69), (0.15, 0.06)),  # DCI-P3, with its white mapped to D65
    12: ((0.68, 0.32), (0.265, 0.69), (0.15, 0.06)),  # Display P3
}
_BT709_XY = ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06))
_D65 = (0.3127, 0.3290)
_WIDE = frozenset({9, 11, 12})

MATRICES = {  # of Y′CbCr, with the weights of red and blue in Y′
    1: (0.2126, 0.0722),  # BT.709
    4: (0.30, 0.11),
    5: (0.299, 0.114),  # BT.601
    6: (0.299, 0.114),
    7: (0.212, 0.087),
    9: (0.2627, 0.0593),  # BT.2020
}

_REFERENCE_WHITE_NITS = 203.0  # of HDR, by BT.2408; it becomes the white of SDR
_PEAK_NITS = 1000.0  # brighter light is clipped
_BLACK_NITS = 1e-3
_HLG_GAMMA = 1.2  # of a display with this peak, by BT.2100
_BT2020_LUMINANCE = (0.2627, 0.6780, 0.0593)

Reals = NDArray[np.float64]


class ColorSpace(NamedTuple):
    """Primaries and transfer characteristics, as codes of H.273."""

    primaries: int = UNSPECIFIED
    transfer: int = UNSPECIFIED

    @property
    def is_hdr(self) -> bool:
        """Return whether it is brighter than SDR can be."""
        return self.transfer in HDR

    @property
    def is_wide(self) -> bool:
        """Return whether it has colors that sRGB lacks."""
        return self.primaries in _WIDE

    @property
    def needs_conversion(self) -> bool:
        """Return whether its values mean other colors than those of BT.709 or sRGB."""
        return self.is_hdr or self.primaries in _XY


class Conversion:
    """Converts pixels of one color space. Curves are tables, so that a frame takes little time.

    `hdr_curve` encodes what was HDR: as BT.1886 (`BT709`) or as `SRGB`.
    """

    def __init__(self, space: ColorSpace, hdr_curve: int = BT709) -> None:
        self._light = _decode(np.linspace(0, 1, 1 << 16), space.transfer).astype(np.float32)
        self._system_gains = (
            np.power(_LIGHT, _HLG_GAMMA - 1, dtype=np.float32) if space.transfer == HLG else None
        )
        self._gains = _gains(_LIGHT).astype(np.float32) if space.is_hdr else None
        self._to_bt709 = _to_bt709(space.primaries).astype(np.float32) if space.primaries in _XY else None
        encoded = _encode(_LIGHT, hdr_curve if space.is_hdr else space.transfer)
        self._encoded = np.rint(encoded * 255).astype(np.uint8)

    def convert(self, rgb: NDArray[np.uint16]) -> NDArray[np.uint8]:
        """Return RGB of 8 bits, of RGB of 16 bits: `[height, width, 3]`."""
        light = self._light[rgb]
        if self._system_gains is not None:
            luminance = light @ np.array(_BT2020_LUMINANCE, np.float32)
            light *= _look_up(self._system_gains, luminance)[..., None]
        if self._gains is not None:
            light *= _look_up(self._gains, light.max(axis=-1))[..., None]
        if self._to_bt709 is not None:
            light = light @ self._to_bt709.T
        return _look_up(self._encoded, light)


_LIGHT: Reals = np.linspace(0, 1, 1 << 14) ** 2
"""Where tables of `_look_up` are sampled: densely in the dark, where curves are steep."""


def _look_up(table: NDArray[Any], light: NDArray[np.float32]) -> NDArray[Any]:
    """Return what a table has for light from 0 to 1."""
    return table[(np.sqrt(np.clip(light, 0, 1)) * (len(table) - 1) + 0.5).astype(np.uint16)]


def full_range(values: NDArray[np.uint16], bits: int) -> NDArray[np.uint16]:
    """Return values of 16 bits, of those that are `bits` shifted left."""
    return (values * np.float32(65535 / _largest(bits)) + np.float32(0.5)).astype(np.uint16)


def yuv_to_rgb(yuv: NDArray[np.uint16], matrix: int, *, is_full_range: bool, bits: int) -> NDArray[np.uint16]:
    """Return RGB of 16 bits, of Y′CbCr that are `bits` shifted left: `[height, width, 3]`.

    `matrix` is one of MATRICES.
    """
    red, blue = MATRICES[matrix]
    black, luma_range, chroma_range = (16 << 8, 219 << 8, 224 << 8)
    if is_full_range:
        black, luma_range, chroma_range = 0, _largest(bits), _largest(bits)
    luma = (yuv[..., 0].astype(np.float32) - black) / luma_range
    cb = (yuv[..., 1].astype(np.float32) - (128 << 8)) / chroma_range
    cr = (yuv[..., 2].astype(np.float32) - (128 << 8)) / chroma_range
    r = luma + 2 * (1 - red) * cr
    b = luma + 2 * (1 - blue) * cb
    g = (luma - red * r - blue * b) / (1 - red - blue)
    return (np.stack([r, g, b], axis=-1).clip(0, 1) * 65535 + 0.5).astype(np.uint16)


def _largest(bits: int) -> int:
    return (1 << 16) - (1 << (16 - bits))


def _decode(values: Reals, transfer: int) -> Reals:
    """Return light: of PQ, 1 is the peak; of HLG, the light of the scene; else 1 is white."""
    if transfer == PQ:
        return np.minimum(_pq_to_nits(values) / _PEAK_NITS, 1)
    if transfer == HLG:
        upper = np.exp((values - 0.55991073) / 0.17883277) + 0.28466892
        return np.where(values <= 0.5, values**2 / 3, upper / 12)
    if transfer == SRGB:
        return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    return np.power(values, 2.4)


def _encode(light: Reals, transfer: int) -> Reals:
    if transfer == SRGB:
        return np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)
    return np.power(light, 1 / 2.4)


def _gains(peaks: Reals) -> Reals:
    """Return by how much to multiply a pixel whose largest channel is this, 1 being the peak of HDR.

    In the result 1 is the white of SDR. Dark parts keep their light and bright ones are compressed, as by
    ITU-R BT.2390. All three channels of a pixel get the same gain, which keeps its hue.
    """
    nits = np.maximum(peaks * _PEAK_NITS, _BLACK_NITS)
    white, top = _nits_to_pq(np.array([_REFERENCE_WHITE_NITS, _PEAK_NITS]))
    mapped = _pq_to_nits(_roll_off(_nits_to_pq(nits) / top, white / top) * top)
    return mapped / nits * (_PEAK_NITS / _REFERENCE_WHITE_NITS)


def _roll_off(values: Reals, white: float) -> Reals:
    """Map 0…1 to 0…`white`, the identity up to a knee: the Hermite spline of BT.2390, in the domain of PQ."""
    knee = 1.5 * white - 0.5
    t = np.clip((values - knee) / (1 - knee), 0, 1)
    spline = (
        (2 * t**3 - 3 * t**2 + 1) * knee + (t**3 - 2 * t**2 + t) * (1 - knee) + (3 * t**2 - 2 * t**3) * white
    )
    return np.where(values < knee, values, spline)


_M1, _M2 = 2610 / 16384, 2523 / 32
_C1, _C2, _C3 = 3424 / 4096, 2413 / 128, 2392 / 128


def _pq_to_nits(values: Reals) -> Reals:
    root = np.power(values, 1 / _M2)
    return 10_000 * np.power(np.maximum(root - _C1, 0) / (_C2 - _C3 * root), 1 / _M1)


def _nits_to_pq(nits: Reals) -> Reals:
    power = np.power(nits / 10_000, _M1)
    return np.power((_C1 + _C2 * power) / (1 + _C3 * power), _M2)


def _to_bt709(primaries: int) -> Reals:
    """Return the matrix from linear RGB of these primaries to linear RGB of BT.709."""
    return np.linalg.inv(_to_xyz(_BT709_XY)) @ _to_xyz(_XY[primaries])


def _to_xyz(corners: tuple[tuple[float, float], ...]) -> Reals:
    def xyz(x: float, y: float) -> Reals:
        return np.array([x / y, 1, (1 - x - y) / y])

    columns = np.stack([xyz(*corner) for corner in corners], axis=1)
    return columns * np.linalg.solve(columns, xyz(*_D65))
