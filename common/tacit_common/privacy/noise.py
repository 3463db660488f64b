"""Noise that hides a contribution: where its randomness comes from, and how it is added.

Privacy rests on randomness that nobody can guess, so noise and Poisson samples come from
`SecureRandom`, never from torch or numpy generators: seeding those changes nothing here.

The release itself is on a lattice, because the bits of a sum of floats plus float noise
can give the sum away (Mironov 2012). See `LatticeGaussian`.
"""

import hashlib
import math
import os
import threading
import weakref
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR
from numpy.typing import NDArray
from torch import Tensor

from tacit_common.errors import NonFiniteUpdateError, PrivacyConfigError
from tacit_common.privacy.events import GaussianRelease, PoissonGaussianSteps

_KEY_BYTES = 32
_CHUNK = 1 << 15  # words at a time: stays in the L2 cache, and in one thread of torch
_ZEROS = bytes(_KEY_BYTES + 8 * _CHUNK)  # CTR mode turns zeros into keystream

_ONE = np.uint64(0x3FF0_0000_0000_0000)  # the bits of 1.0
_BELOW_ONE = 1.0 - 2.0**-53


# --- randomness ------------------------------------------------------------------------


@runtime_checkable
class RandomSource(Protocol):
    """Independent draws for noise and sampling."""

    def uniform(self, n: int) -> NDArray[np.float64]:
        """`n` draws, uniform in the open interval (0, 1)."""
        ...

    def bernoulli(self, n: int, p: float) -> NDArray[np.bool_]:
        """`n` independent draws, true with probability `p`."""
        ...

    def gaussian(self, n: int) -> NDArray[np.float64]:
        """`n` standard normal draws."""
        ...


class _Keystream:
    """Draws from an AES-256-CTR keystream with fast key erasure (Bernstein 2017).

    Each chunk is encrypted under its own key, whose first 32 bytes of output replace the
    key before anything is returned: who later reads the memory of the process learns
    nothing about noise that was already drawn. Safe to share between threads.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._lock = threading.Lock()

    def uniform(self, n: int) -> NDArray[np.float64]:
        """`n` draws, uniform on the odd multiples of 2⁻⁵³: never 0, never 1."""
        out = np.empty(n)
        for start in range(0, n, _CHUNK):
            part = out[start : start + _CHUNK]
            part[:] = _unit_interval(self._words(len(part)))
        return out

    def bernoulli(self, n: int, p: float) -> NDArray[np.bool_]:
        """`n` independent draws, true with probability ⌊p·2⁶⁴⌋ / 2⁶⁴: never more than `p`.

        Raises:
            PrivacyConfigError: `p` is not a probability.
        """
        if not 0 <= p <= 1:
            raise PrivacyConfigError(
                f"{p} is not a probability",
                why="a Poisson sample takes each unit with a probability in [0, 1]",
                fix="give a sampling rate in [0, 1]",
            )
        if p == 1:
            return np.ones(n, dtype=np.bool_)
        threshold = np.uint64(int(math.ldexp(p, 64)))
        out = np.empty(n, dtype=np.bool_)
        for start in range(0, n, _CHUNK):
            part = out[start : start + _CHUNK]
            np.less(self._words(len(part)), threshold, out=part)
        return out

    def gaussian(self, n: int) -> NDArray[np.float64]:
        """`n` standard normal draws (Box and Muller 1958).

        The radius comes from a 64-bit uniform, so |z| reaches 9.49; a true normal pair goes
        beyond with probability 2⁻⁶⁵, that is 1e-11 over 4e8 pairs.
        """
        out = np.empty(n)
        for start in range(0, n, _CHUNK):
            part = out[start : start + _CHUNK]
            pairs = (len(part) + 1) // 2
            words = self._words(2 * pairs)
            # torch computes logarithm, sine and cosine of float64 many at a time; numpy does not.
            radius = torch.from_numpy(words[:pairs].astype(np.float64))
            radius.add_(0.5).mul_(2.0**-64).log_().mul_(-2.0).sqrt_()
            angle = torch.from_numpy(_unit_interval(words[pairs:])).mul_(2.0 * math.pi)
            part[:pairs] = (radius * angle.cos()).numpy()
            part[pairs:] = (radius * angle.sin()).numpy()[: len(part) - pairs]
        return out

    def _words(self, n: int) -> NDArray[np.uint64]:
        """`n` ≤ 2¹⁵ uniform 64-bit words, and a new key."""
        stream = bytearray(_KEY_BYTES + 8 * n)
        with self._lock:  # also keeps two threads from reading one keystream
            encryptor = Cipher(AES256(self._key), CTR(bytes(16))).encryptor()
            encryptor.update_into(memoryview(_ZEROS)[: len(stream)], stream)
            self._key = bytes(stream[:_KEY_BYTES])
        stream[:_KEY_BYTES] = bytes(_KEY_BYTES)
        return np.frombuffer(stream, dtype=np.uint64, offset=_KEY_BYTES)


class SecureRandom(_Keystream):
    """Cryptographically secure draws, keyed by the operating system.

    Guarantees: no seed changes them; two sources, and a process and its forked child, draw
    independently; past draws cannot be reconstructed from the present state. Safe to
    share between threads.
    """

    def __init__(self) -> None:
        super().__init__(os.urandom(_KEY_BYTES))
        _secure_sources.add(self)

    def _rekey(self) -> None:
        self._lock = threading.Lock()  # another thread of the parent may have held the old one
        self._key = os.urandom(_KEY_BYTES)


_secure_sources: "weakref.WeakSet[SecureRandom]" = weakref.WeakSet()


def _rekey_all() -> None:
    for source in list(_secure_sources):
        source._rekey()


# Without this a forked worker would add the very noise that its parent adds.
os.register_at_fork(after_in_child=_rekey_all)


class InsecureSeededRandom(_Keystream):
    """Draws that anybody with the seed can repeat: for tests, never for data.

    Raises:
        PrivacyConfigError: without `insecure_rng=True`.
    """

    def __init__(self, seed: int, *, insecure_rng: Literal[True]) -> None:
        if insecure_rng is not True:
            raise PrivacyConfigError(
                "a seeded noise source protects nothing",
                why="who knows the seed can subtract the noise",
                fix="use SecureRandom, or say insecure_rng=True in a test",
            )
        super().__init__(hashlib.sha256(f"insecure:{seed}".encode()).digest())


def _unit_interval(words: NDArray[np.uint64]) -> NDArray[np.float64]:
    """(2k + 1)·2⁻⁵³ with k the upper 52 bits of each word: exact, and inside (0, 1)."""
    mantissa = words >> np.uint64(12)
    mantissa |= _ONE  # 1 + k·2⁻⁵²
    unit = mantissa.view(np.float64)
    unit -= _BELOW_ONE
    return unit


# --- the mechanism ---------------------------------------------------------------------

_LATTICE_STEPS = 64
"""√d lattice steps to the clip norm, docs/privacy.md 6: rounding adds 1/64 to the sensitivity."""

_FLOAT_SLACK = 2.0**-20
"""Relative allowance for the rounding of float64 sums; see `LatticeGaussian`."""

_EXACT = 2.0**53
"""Below it, every integer is a float64."""


@dataclass(frozen=True, kw_only=True)
class LatticeGaussian:
    """The Gaussian mechanism on a lattice: γ·(rint(S/γ) + rint(σ′z)), with γ = C / (64·√d).

    Why it is a Gaussian mechanism. Write k(S) = rint(S/γ), an integer vector. For z normal,
    k + rint(σ′z) = rint(k + σ′z) but for ties, which have probability 0: the release is a
    function of k(S) + σ′z, a Gaussian mechanism on the lattice-valued query k. So it costs
    what that mechanism costs, and its float bits hold nothing but integers.

    What rounding adds. If one unit changes S by at most C in L2 norm, then k changes by at
    most C/γ + √d, since each of the d roundings moves by at most ½ on either side. Times
    γ: C + γ√d = C·(1 + 1/64), the sensitivity to which the noise is scaled.

    What floats add. Two neighbouring float64 sums, formed by `clipped_sum` and
    `CompensatedSum` over at most `MOST_ROWS`, differ from the true difference by less than
    2⁻²⁰·C. The sensitivity holds this too (1e-6 more noise).

    What is left out. z is a float64 Box–Muller draw; it enters only through rint(σ′z), where
    σ′ ≥ 65·√d·`noise_multiplier`.

    Args:
        l2_clip_norm: C, a bound on what one unit adds to the sum.
        dimension: d, the length of the sum.
        noise_multiplier: noise_stddev over `l2_sensitivity`.
        source: where z comes from.

    Raises:
        PrivacyConfigError: a parameter is not positive, or the lattice does not fit float64.
    """

    l2_clip_norm: float
    dimension: int
    noise_multiplier: float
    source: RandomSource

    def __post_init__(self) -> None:
        positive = (self.l2_clip_norm, self.noise_multiplier, self.dimension)
        if not all(math.isfinite(value) and value > 0 for value in positive):
            raise PrivacyConfigError(
                "a Gaussian release needs a clip norm, a noise multiplier and a dimension",
                why="one of them is not a positive number",
                fix="take them from a calibrated privacy schedule",
            )
        # Half of the range is for the noise, which is below 9.5 σ′, and half for the sum.
        if self._lattice_stddev * 10 > _EXACT / 2 or not 1e-280 < self.lattice_step < 1e280:
            raise PrivacyConfigError(
                "the noise does not fit the lattice",
                why="float64 holds integers up to 2^53 exactly",
                fix="use a smaller noise multiplier, or a clip norm of ordinary size",
            )

    @property
    def lattice_step(self) -> float:
        """γ."""
        return self.l2_clip_norm / (_LATTICE_STEPS * math.sqrt(self.dimension))

    @property
    def l2_sensitivity(self) -> float:
        """(C + γ√d)·(1 + 2⁻²⁰): what one unit changes in the rounded sum, in L2 norm."""
        rounding = self.lattice_step * math.sqrt(self.dimension)
        return (self.l2_clip_norm + rounding) * (1 + _FLOAT_SLACK)

    @property
    def noise_stddev(self) -> float:
        """Standard deviation of the noise in each coordinate, before rounding."""
        return self.noise_multiplier * self.l2_sensitivity

    @property
    def _lattice_stddev(self) -> float:
        """σ′: the noise in steps of the lattice."""
        return self.noise_stddev / self.lattice_step

    def apply(self, clipped_sum: Tensor) -> Tensor:
        """The private sum [d], float64, from `clipped_sum` [d], float64 on the CPU.

        Guarantees: every coordinate is an integer times `lattice_step`; the argument is
        unchanged.

        Raises:
            PrivacyConfigError: the sum has another shape, type or place, or is so large
                that its lattice points are no longer exact.
            NonFiniteUpdateError: the sum holds NaN or infinity.
        """
        here = (clipped_sum.dtype, clipped_sum.device.type, tuple(clipped_sum.shape))
        if here != (torch.float64, "cpu", (self.dimension,)):
            raise PrivacyConfigError(
                "this mechanism cannot take the sum that it was given",
                why=f"it adds noise to float64 [{self.dimension}] on the CPU, not to "
                f"{clipped_sum.dtype} {list(clipped_sum.shape)} on {clipped_sum.device.type}",
                fix="sum the clipped contributions with clipped_sum and move them to the CPU",
            )
        lattice = clipped_sum.detach() / self.lattice_step  # [d]
        largest = float(lattice.abs().amax())
        if not math.isfinite(largest):
            raise NonFiniteUpdateError(
                "a sum that was to be made private is not finite",
                why="a contribution reached it without being clipped",
                fix="clip every contribution with clipped_sum, which drops what is not finite",
            )
        if largest >= _EXACT / 2:
            raise PrivacyConfigError(
                "the sum does not fit the lattice",
                why="float64 holds integers up to 2^53 exactly",
                fix="clip contributions to the l2_clip_norm that the mechanism was given",
            )
        noise = torch.from_numpy(self.source.gaussian(self.dimension))
        # Two roundings, not one of the float sum: noise must not see the fraction of S/γ.
        return (
            lattice.round_().add_(noise.mul_(self._lattice_stddev).round_()).mul_(self.lattice_step)
        )

    def event(self, *, sampling_rate: float, steps: int) -> PoissonGaussianSteps:
        """The event of `steps` sums, each over a Poisson sample at `sampling_rate`."""
        return PoissonGaussianSteps(
            sampling_rate=sampling_rate, noise_multiplier=self.noise_multiplier, steps=steps
        )

    def release_event(self) -> GaussianRelease:
        """The event of one sum over all units, as a probe makes it."""
        return GaussianRelease(noise_multiplier=self.noise_multiplier)
