"""Convert colors to the primaries of BT.709 and sRGB. HDR is tone-mapped to SDR.

Color spaces are named by the codes of ITU-T H.273, as files carry them, or described by an exponent and
chromaticities. Light is that of the display: of SDR by BT.1886, or by sRGB where the file says so. What was
SDR keeps its curve, unless the file gives its exponent.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

BT709, UNSPECIFIED = 1, 2
LINEAR, SRGB, PQ, HLG = 8, 13, 16, 18
"""Transfer characteristics."""
HDR = frozenset({PQ, HLG})
_SDR = frozenset({1, UNSPECIFIED, 4, 5, 6, 7, LINEAR, 11, SRGB, 14, 15})


class Chromaticities(NamedTuple):
    """The xy coordinates of the primaries and of white."""

    red: tuple[float, float]
    green: tuple[float, float]
    blue: tuple[float, float]
    white: tuple[float, float] = (0.3127, 0.3290)  # D65


_ILLUMINANT_C = (0.310, 0.316)
_XY = {
    4: Chromaticities((0.67, 0.33), (0.21, 0.71), (0.14, 0.08), _ILLUMINANT_C),  # BT.470 M
    5: Chromaticities((0.64, 0.33), (0.29, 0.60), (0.15, 0.06)),  # BT.601 with 625 lines
    6: Chromaticities((0.63, 0.34), (0.31, 0.595), (0.155, 0.07)),  # BT.601 with 525 lines
    7: Chromaticities((0.63, 0.34), (0.31, 0.595), (0.155, 0.07)),
    8: Chromaticities((0.681, 0.319), (0.243, 0.692), (0.145, 0.049), _ILLUMINANT_C),  # film
    9: Chromaticities((0.708, 0.292), (0.17, 0.797), (0.131, 0.046)),  # BT.2020
    11: Chromaticities((0.68, 0.32), (0.265, 0.69), (0.15, 0.06), (0.314, 0.351)),  # DCI-P3
    12: Chromaticities((0.68, 0.32), (0.265, 0.69), (0.15, 0.06)),  # Display P3
    22: Chromaticities((0.63, 0.34), (0.295, 0.605), (0.155, 0.077)),  # EBU Tech. 3213
}
BT709_XY = Chromaticities((0.64, 0.33), (0.30, 0.60), (0.15, 0.06))
_MIN_OUTSIDE = 0.1  # less light than this of a negative channel is hardly seen when it is clipped

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
    """Primaries and transfer characteristics, as codes of H.273.

    A file may give chromaticities instead of the code of primaries. With an `exponent`, light is the value to
    this power, whatever `transfer` says. With `is_narrow`, black and white are the values 16 and 235 of 255.
    """

    primaries: int | Chromaticities = UNSPECIFIED
    transfer: int = UNSPECIFIED
    exponent: float | None = None
    is_narrow: bool = False

    @property
    def chromaticities(self) -> Chromaticities | None:
        """Return the chromaticities of its primaries if they are not those of BT.709."""
        if isinstance(self.primaries, Chromaticities):
            return self.primaries
        return _XY.get(self.primaries)

    @property
    def is_hdr(self) -> bool:
        """Return whether it is brighter than SDR can be."""
        return self.transfer in HDR

    @property
    def is_wide(self) -> bool:
        """Return whether it has colors that sRGB lacks."""
        xy = self.chromaticities
        return xy is not None and bool(_to_bt709(xy).min() < -_MIN_OUTSIDE)

    @property
    def is_known(self) -> bool:
        """Return whether its codes can be obeyed."""
        has_primaries = self.primaries in {BT709, UNSPECIFIED} or self.chromaticities is not None
        return has_primaries and self.transfer in _SDR | HDR

    @property
    def keeps_curve(self) -> bool:
        """Return whether values are encoded as they were, after a conversion."""
        return not self.is_hdr and self.transfer != LINEAR and self.exponent is None

    @property
    def needs_conversion(self) -> bool:
        """Return whether its values mean other colors than those of BT.709 or sRGB."""
        return not self.keeps_curve or self.is_narrow or self.chromaticities is not None


def problems_of(space: ColorSpace) -> set[str]:
    """Return the names of what a conversion from this color space changes or loses."""
    facts = {
        "is_hdr": space.is_hdr,
        "is_wide_gamut": space.is_wide and not space.is_hdr,
        "has_unknown_colors": not space.is_known,
    }
    return {name for name, applies in facts.items() if applies}


class Conversion:
    """Converts pixels of one color space. Curves are tables, so that a frame takes little time.

    `new_curve` encodes what does not keep its curve, such as HDR: as BT.1886 (`BT709`) or as `SRGB`.
    """

    def __init__(self, space: ColorSpace, new_curve: int = BT709) -> None:
        values = np.linspace(0, 1, 1 << 16)
        if space.is_narrow:
            values = np.clip((values * 255 - 16) / 219, 0, 1)
        self._light = _decode(values, space).astype(np.float32)
        self._system_gains = (
            np.power(_LIGHT, _HLG_GAMMA - 1, dtype=np.float32) if space.transfer == HLG else None
        )
        self._gains = _gains(_LIGHT).astype(np.float32) if space.is_hdr else None
        xy = space.chromaticities
        self._to_bt709 = _to_bt709(xy).astype(np.float32) if xy else None
        encoded = _encode(_LIGHT, space.transfer if space.keeps_curve else new_curve)
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


def _decode(values: Reals, space: ColorSpace) -> Reals:
    """Return light: of PQ, 1 is the peak; of HLG, the light of the scene; else 1 is white."""
    transfer = space.transfer
    if space.exponent is not None:
        return np.power(values, space.exponent)
    if transfer == LINEAR:
        return values
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


_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
"""From XYZ to the responses of cones in which ICC profiles adapt colors to another white."""


@cache
def _to_bt709(xy: Chromaticities) -> Reals:
    """Return the matrix from linear RGB of these primaries to linear RGB of BT.709. White stays white."""
    cones = _BRADFORD @ np.stack([_xyz(*BT709_XY.white), _xyz(*xy.white)], axis=1)
    adapt = np.linalg.inv(_BRADFORD) @ np.diag(cones[:, 0] / cones[:, 1]) @ _BRADFORD
    matrix: Reals = np.linalg.inv(_to_xyz(BT709_XY)) @ adapt @ _to_xyz(xy)
    return matrix


def _to_xyz(xy: Chromaticities) -> Reals:
    columns = np.stack([_xyz(*xy.red), _xyz(*xy.green), _xyz(*xy.blue)], axis=1)
    return columns * np.linalg.solve(columns, _xyz(*xy.white))


def _xyz(x: float, y: float) -> Reals:
    return np.array([x / y, 1, (1 - x - y) / y])
