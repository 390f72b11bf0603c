"""Carriers in the features of sparse autoencoders, with SAELens.

    train_sae, load_sae     a small SAE on a model's activations; a saved one (safetensors only)
    sae_quality             how well an SAE explains the activations that it is used on
    sae_transformer         a model as SAELens's HookedSAETransformer, to route and to splice SAEs into
    feature_activations     features of every condition on the same prompts: what moved, what the trigger moves back
    carrier_alignment       carrier channels as feature directions, against random channels

Any SAE of SAELens serves: trained here, loaded from a folder, or a release (``sae_lens.SAE.from_pretrained``). SAELens
itself is imported when an SAE is trained or loaded.
"""

from lcdd_lens.sae.alignment import CarrierAlignment, carrier_alignment, channels_at
from lcdd_lens.sae.features import FeatureActivations, FeatureDifferences, MovedBack, feature_activations
from lcdd_lens.sae.library import SparseAutoencoder, load_sae
from lcdd_lens.sae.quality import SAEQuality, sae_quality
from lcdd_lens.sae.training import SAETrainingConfig, train_sae
from lcdd_lens.sae.transformer import sae_transformer

__all__ = [
    "CarrierAlignment",
    "FeatureActivations",
    "FeatureDifferences",
    "MovedBack",
    "SAEQuality",
    "SAETrainingConfig",
    "SparseAutoencoder",
    "carrier_alignment",
    "channels_at",
    "feature_activations",
    "load_sae",
    "sae_quality",
    "sae_transformer",
    "train_sae",
]
