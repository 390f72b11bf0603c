"""Models and where their weights live: the only code that knows an architecture."""

from lcdd_lens.backends.base import Backend, LensModel, backend_of, device_of, parameter_of, weights_fingerprint
from lcdd_lens.backends.bridge import BridgeBackend
from lcdd_lens.backends.export import export_hf
from lcdd_lens.backends.lens_bridge import LensBridge
from lcdd_lens.backends.loading import BACKENDS, ModelSource, load_model, resolved_backend
from lcdd_lens.backends.origin import Origin, origin_of
from lcdd_lens.backends.pairs import ModelPair, PairReport, PairSource, load_pair
from lcdd_lens.backends.sites import SITE_KINDS, GateAxis, Site, SiteKind, WeightSite
from lcdd_lens.compatibility import has_hooked_transformer

if has_hooked_transformer():
    from lcdd_lens.backends.hooked import HookedBackend

__all__ = [
    "BACKENDS",
    "SITE_KINDS",
    "Backend",
    "BridgeBackend",
    "GateAxis",
    "LensBridge",
    "LensModel",
    "ModelPair",
    "ModelSource",
    "Origin",
    "PairReport",
    "PairSource",
    "Site",
    "SiteKind",
    "WeightSite",
    "backend_of",
    "device_of",
    "export_hf",
    "load_model",
    "load_pair",
    "origin_of",
    "parameter_of",
    "resolved_backend",
    "weights_fingerprint",
]

if has_hooked_transformer():
    __all__ += ["HookedBackend"]
