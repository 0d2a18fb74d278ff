"""Specs to the contract's Spec and back. The only place that knows both torch's `momentum` and the wire's words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from normstats import specs
from normstats.v1 import resources_pb2 as pb
from normstats.wire import floats

_NAN_POLICY = {"reject": pb.NAN_POLICY_REJECT, "omit": pb.NAN_POLICY_OMIT}


def to_proto(spec: specs.Spec) -> pb.Spec:
    """The contract's form of a spec."""
    field, encode = _ENCODERS[type(spec)]
    return pb.Spec(**{field: encode(spec)})


def from_proto(message: pb.Spec) -> specs.Spec:
    """The spec that a message describes, its defaults filled in.

    Raises:
        specs.InvalidSpec: an argument is wrong, or no kind is given. `argument` is the path below the message.
    """
    kind = message.WhichOneof("kind")
    if kind is None:
        raise specs.InvalidSpec("kind", "is not given; expected one normalization")
    try:
        return _DECODERS[kind](getattr(message, kind))
    except specs.InvalidSpec as error:
        error.argument = f"{kind}.{error.argument}"
        raise


def _policy(spec: Any, momentum: float | None, without: dict[str, Any]) -> pb.RunningPolicy:
    policy = pb.RunningPolicy(freeze_after_count=spec.freeze_after or 0)
    if spec.half_life is not None:
        policy.time_ema.half_life.FromNanoseconds(round(spec.half_life * 1e9))
    elif momentum is not None:
        policy.batch_ema.new_value_weight = momentum
    else:
        policy.MergeFrom(pb.RunningPolicy(**without))
    return policy


def _averaging(message: Any, default_momentum: float | None, plain: str) -> dict[str, Any]:
    """momentum, half_life and freeze_after of a message's running policy; `plain` is the policy without weights."""
    policy = message.running_policy
    kind = policy.WhichOneof("kind")
    if kind not in (None, plain, "batch_ema", "time_ema"):
        raise specs.InvalidSpec("running_policy", f"is {kind}; expected {plain}, batch_ema or time_ema")
    arguments: dict[str, Any] = {"momentum": default_momentum if kind is None else None} | _freeze(policy)
    if kind == "batch_ema":
        arguments["momentum"] = policy.batch_ema.new_value_weight
    if kind == "time_ema":
        arguments["half_life"] = policy.time_ema.half_life.ToNanoseconds() / 1e9
    return arguments


def _freeze(policy: pb.RunningPolicy) -> dict[str, Any]:
    return {"freeze_after": policy.freeze_after_count or None}


def _nan_policy(message: Any) -> dict[str, Any]:
    try:
        return (
            {"nan_policy": pb.NanPolicy.Name(message.nan_policy).removeprefix("NAN_POLICY_").lower()}
            if (message.nan_policy)
            else {}
        )
    except ValueError:
        raise specs.InvalidSpec("nan_policy", f"is {message.nan_policy}; expected one of NanPolicy") from None


def _given(message: Any, *names: str) -> dict[str, Any]:
    """Those optional scalars that are set."""
    return {name: getattr(message, name) for name in names if message.HasField(name)}


def _arrays(message: Any, *names: str) -> dict[str, Any]:
    """Those float64 arrays that are not empty."""
    arrays = {}
    for name in names:
        if data := getattr(message, name):
            try:
                arrays[name] = floats.from_bytes(data)
            except ValueError as error:
                raise specs.InvalidSpec(name, str(error)) from None
    return arrays


def _encode_batch_norm(spec: specs.BatchNorm) -> pb.BatchNorm:
    message = pb.BatchNorm(
        num_features=spec.num_features,
        eps=spec.eps,
        running_policy=_policy(spec, spec.momentum, {"batch_average": pb.RunningPolicy.BatchAverage()}),
        weight=floats.to_bytes(spec.weight),
        bias=floats.to_bytes(spec.bias),
        running_mean=floats.to_bytes(spec.running_mean),
        running_var=floats.to_bytes(spec.running_var),
        channel_axis=spec.channel_axis,
        virtual_batch_size=spec.virtual_batch_size or 0,
        nan_policy=_NAN_POLICY[spec.nan_policy],
    )
    if spec.renorm is not None:
        message.renorm.r_max, message.renorm.d_max = spec.renorm
    return message


def _decode_batch_norm(message: pb.BatchNorm) -> specs.BatchNorm:
    renorm = message.renorm
    return specs.BatchNorm(
        message.num_features,
        renorm=(renorm.r_max, renorm.d_max) if message.HasField("renorm") else None,
        virtual_batch_size=message.virtual_batch_size or None,
        **_given(message, "eps", "channel_axis"),
        **_arrays(message, "weight", "bias", "running_mean", "running_var"),
        **_averaging(message, 0.1, "batch_average"),
        **_nan_policy(message),
    )


def _encode_standardize(spec: specs.Standardize) -> pb.Standardize:
    return pb.Standardize(
        num_features=spec.num_features,
        eps=spec.eps,
        clip=spec.clip,
        running_policy=_policy(spec, spec.momentum, {"cumulative": pb.RunningPolicy.Cumulative()}),
        channel_axis=spec.channel_axis,
        nan_policy=_NAN_POLICY[spec.nan_policy],
    )


def _decode_standardize(message: pb.Standardize) -> specs.Standardize:
    return specs.Standardize(
        message.num_features,
        **_given(message, "eps", "clip", "channel_axis"),
        **_averaging(message, None, "cumulative"),
        **_nan_policy(message),
    )


def _encode_min_max(spec: specs.MinMax) -> pb.MinMax:
    return pb.MinMax(
        num_features=spec.num_features,
        range_min=spec.feature_range[0],
        range_max=spec.feature_range[1],
        clip=spec.clip,
        running_policy=pb.RunningPolicy(
            cumulative=pb.RunningPolicy.Cumulative(), freeze_after_count=spec.freeze_after or 0
        ),
        channel_axis=spec.channel_axis,
        nan_policy=_NAN_POLICY[spec.nan_policy],
    )


def _decode_min_max(message: pb.MinMax) -> specs.MinMax:
    kind = message.running_policy.WhichOneof("kind")
    if kind not in (None, "cumulative"):
        raise specs.InvalidSpec("running_policy", f"is {kind}; expected cumulative")
    ends = (message.range_min, message.range_max)
    return specs.MinMax(
        message.num_features,
        feature_range=(0.0, 1.0) if ends == (0.0, 0.0) else ends,
        clip=message.clip,
        **_given(message, "channel_axis"),
        **_freeze(message.running_policy),
        **_nan_policy(message),
    )


def _encode_affine(message: Any, spec: Any, *names: str) -> Any:
    """A message with the spec's scalars `names`, and its weight and bias where it has them."""
    fields = {name: getattr(spec, name) for name in names}
    fields |= {name: floats.to_bytes(getattr(spec, name)) for name in ("weight", "bias") if hasattr(spec, name)}
    return message(**fields)


def _decode_affine(spec: Callable[..., specs.Spec], message: Any, *names: str) -> Any:
    fields = {name: getattr(message, name) for name in names}
    arrays = [name for name in ("weight", "bias") if hasattr(message, name)]
    return spec(**fields, **_given(message, "eps"), **_arrays(message, *arrays))


def _given_of(spec: Callable[..., specs.Spec], message: Any, *names: str) -> Any:
    return spec(**_given(message, *names))


def _decode_shape(spec: Callable[..., specs.Spec], message: Any) -> Any:
    arrays = [name for name in ("weight", "bias") if hasattr(message, name)]
    return spec(tuple(message.normalized_shape), **_given(message, "eps"), **_arrays(message, *arrays))


_ENCODERS: dict[type, tuple[str, Callable[[Any], Any]]] = {
    specs.BatchNorm: ("batch_norm", _encode_batch_norm),
    specs.LayerNorm: ("layer_norm", lambda s: _encode_affine(pb.LayerNorm, s, "normalized_shape", "eps")),
    specs.RMSNorm: ("rms_norm", lambda s: _encode_affine(pb.RmsNorm, s, "normalized_shape", "eps")),
    specs.GroupNorm: (
        "group_norm",
        lambda s: _encode_affine(pb.GroupNorm, s, "num_groups", "num_channels", "eps"),
    ),
    specs.InstanceNorm: (
        "instance_norm",
        lambda s: _encode_affine(pb.InstanceNorm, s, "num_features", "eps"),
    ),
    specs.AdaptiveInstanceNorm: ("adaptive_instance_norm", lambda s: pb.AdaptiveInstanceNorm(eps=s.eps)),
    specs.MeanVarianceNorm: ("mean_variance_norm", lambda s: pb.MeanVarianceNorm(axes=s.axes, eps=s.eps)),
    specs.LpNorm: ("lp_norm", lambda s: pb.LpNorm(p=s.p, axis=s.axis, eps=s.eps)),
    specs.LocalResponseNorm: (
        "local_response_norm",
        lambda s: pb.LocalResponseNorm(size=s.size, alpha=s.alpha, beta=s.beta, k=s.k),
    ),
    specs.Standardize: ("standardize", _encode_standardize),
    specs.MinMax: ("min_max", _encode_min_max),
}

_DECODERS: dict[str, Callable[[Any], specs.Spec]] = {
    "batch_norm": _decode_batch_norm,
    "layer_norm": lambda m: _decode_shape(specs.LayerNorm, m),
    "rms_norm": lambda m: _decode_shape(specs.RMSNorm, m),
    "group_norm": lambda m: _decode_affine(specs.GroupNorm, m, "num_groups", "num_channels"),
    "instance_norm": lambda m: _decode_affine(specs.InstanceNorm, m, "num_features"),
    "adaptive_instance_norm": lambda m: _given_of(specs.AdaptiveInstanceNorm, m, "eps"),
    "mean_variance_norm": lambda m: specs.MeanVarianceNorm(tuple(m.axes) or (0, 2, 3), **_given(m, "eps")),
    "lp_norm": lambda m: _given_of(specs.LpNorm, m, "p", "axis", "eps"),
    "local_response_norm": lambda m: specs.LocalResponseNorm(m.size, **_given(m, "alpha", "beta", "k")),
    "standardize": _decode_standardize,
    "min_max": _decode_min_max,
}
