"""What the figures of hook points say to somebody who is about to train SAEs there, in words, each with its figure."""

from collections.abc import Sequence

from sae_service.analysis.statistics.records import Advice, HookStatistics
from sae_service.spec import StreamSpec

LARGEST_FLOAT16 = 65_504.0
ROOM = 8.0
"""Other text may have larger numbers than this one: so many times larger ones should still fit."""
BFLOAT16_NOISE = 2.0**-14 * 0.541 / 12
"""The mean squared relative error of a number rounded to 8 significant bits: that of an even error within the distance of two
neighbours, averaged over numbers that are spread evenly on a logarithmic scale.
"""
MUCH_NOISE = 1e-3
STANDS_OUT = 3.0
"""Times the median norm."""
MUCH_SQUARE = 0.01
FAR_APART = 2.0


def advice(hooks: Sequence[HookStatistics], stream: StreamSpec) -> list[Advice]:
    """One piece of advice about each field, by the hook point where it matters most."""
    return [_float16(hooks), _bfloat16(hooks), _normalization(hooks), _exclude(hooks), _limit(hooks, stream)]


def _float16(hooks: Sequence[HookStatistics]) -> Advice:
    if broken := next((one for one in hooks if one.not_finite), None):
        said = f"{broken.not_finite:,} rows at {broken.hook_name} are NaN or infinite in this dtype: take float32 or bfloat16."
        return Advice(
            about="dtype", says=said, value="float32", figure="not_finite",
            number=broken.not_finite, hook_name=broken.hook_name,
        )  # fmt: skip
    worst = max(hooks, key=lambda one: one.largest_magnitude)
    at = f"the largest number, {worst.largest_magnitude:,.4g} at {worst.hook_name},"
    if worst.largest_magnitude > LARGEST_FLOAT16:
        says, value = f"float16 is not safe: {at} is beyond {LARGEST_FLOAT16:,.0f}, the largest that it holds.", "float32"
    elif worst.largest_magnitude * ROOM > LARGEST_FLOAT16:
        share = worst.largest_magnitude / LARGEST_FLOAT16
        says, value = f"float16 leaves little room: {at} is {share:.0%} of the largest that it holds; take another.", None
    else:
        says = f"float16 holds these rows: {at} is far below {LARGEST_FLOAT16:,.0f}. The inside of modules was not seen."
        value = None
    return Advice(
        about="dtype", says=says, value=value, figure="largest_magnitude", number=worst.largest_magnitude, hook_name=worst.hook_name
    )


def _bfloat16(hooks: Sequence[HookStatistics]) -> Advice:
    """Rounding is relative to each number, and FVU to the variance: a large mean row makes it matter."""
    worst = max(hooks, key=lambda one: one.mean_share)
    fvu = BFLOAT16_NOISE / max(1 - worst.mean_share, 1e-12)
    held = f"the mean row holds {worst.mean_share:.1%} of the mean squared norm at {worst.hook_name}"
    if fvu > MUCH_NOISE:
        says, value = f"rows rounded to bfloat16 lose an FVU of about {fvu:.1e}, since {held}: keep float32.", "float32"
    else:
        says, value = f"rows may be rounded to bfloat16: that costs an FVU of about {fvu:.1e} ({held}).", None
    return Advice(about="dtype", says=says, value=value, figure="mean_share", number=worst.mean_share, hook_name=worst.hook_name)


def _normalization(hooks: Sequence[HookStatistics]) -> Advice:
    low, high = min(hooks, key=lambda one: one.rms), max(hooks, key=lambda one: one.rms)
    ratio = high.rms / low.rms if low.rms else 1.0
    if ratio > FAR_APART:
        says = (
            f"the rms of the numbers is {low.rms:.3g} at {low.hook_name} and {high.rms:.3g} at {high.hook_name}: with sqrt_d_in or "
            "unit_mean_square one sparsity coefficient means the same at both; with none it does not."
        )
    else:
        says = f"the rms of the numbers is {low.rms:.3g} to {high.rms:.3g}: one scale serves all these hook points."
    return Advice(
        about="normalization", says=says, value="sqrt_d_in" if ratio > FAR_APART else None, figure="rms", number=high.rms,
        hook_name=high.hook_name,
    )  # fmt: skip


def _exclude(hooks: Sequence[HookStatistics]) -> Advice:
    found = [(token, one.hook_name) for one in hooks for token in one.special_tokens]
    if not found:
        says = "no BOS, EOS or padding is in the text, so exclude has nothing to do."
        return Advice(about="exclude", says=says, value=None, figure="special_tokens", number=None, hook_name=None)
    token, hook_name = max(found, key=lambda pair: pair[0].of_median)
    is_far = token.of_median > STANDS_OUT
    rows = f"rows of {token.token!r} are {token.of_median:,.3g} times the median norm at {hook_name}"
    if is_far and token.is_excluded:
        says, value = f"{rows}: leave it in exclude, or they rule the loss.", None
    elif is_far:
        says, value = f"{rows}: add it to exclude, or they rule the loss.", token.id
    else:
        says, value = f"{rows} at most: no special token stands out, and exclude decides little.", None
    return Advice(about="exclude", says=says, value=value, figure="of_median", number=token.of_median, hook_name=hook_name)


def _limit(hooks: Sequence[HookStatistics], stream: StreamSpec) -> Advice:
    worst = max(hooks, key=lambda one: (one.outliers.square_share, one.outliers.largest_ratio))
    rows, is_set = worst.outliers, stream.max_activation_norm_multiple is not None
    value = None
    if not rows.n:
        says = f"no row that counts is longer than {rows.multiple:g} times the median ({rows.largest_ratio:.3g} times is the most)"
        says += "." if is_set else ": no limit is needed."
    else:
        says = (
            f"{rows.n:,} rows ({rows.share:.2%}) at {worst.hook_name} are longer than {rows.multiple:g} times the median and hold "
            f"{rows.square_share:.1%} of the sum of squared norms"
        )  # fmt: skip
        if rows.square_share > MUCH_SQUARE:
            value, says = rows.multiple, f"{says}: leave them out, or they rule loss and FVU."
        else:
            says = f"{says}: they decide little, and a limit is a matter of taste."
    figure, number = ("square_share", rows.square_share) if rows.n else ("largest_ratio", rows.largest_ratio)
    return Advice(
        about="max_activation_norm_multiple", says=says, value=value, figure=figure, number=number, hook_name=worst.hook_name
    )
