"""The public names, and their registration with Transformers' Auto classes."""

from transformers import AutoConfig, AutoModel, AutoModelForAudioClassification

from .audio import AudioError, load_waveform
from .configuration_ast import ASTConfig
from .conversion import load_imagenet_checkpoint, load_original_checkpoint
from .feature_extraction_ast import ASTFeatureExtractor
from .feature_extraction_passt import PaSSTFeatureExtractor
from .loading import ModelError
from .modeling_ast import ASTForAudioClassification, ASTModel, ASTPreTrainedModel

try:  # takes the other's place in Transformers to come, https://github.com/huggingface/transformers/pull/48113
    from transformers import AutoAudioProcessor
except ImportError:
    from transformers import AutoFeatureExtractor as AutoAudioProcessor

AutoConfig.register(ASTConfig.model_type, ASTConfig, exist_ok=True)
AutoAudioProcessor.register(ASTConfig, ASTFeatureExtractor, exist_ok=True)
# Of no configuration: it is found by its name, which its files say.
AutoAudioProcessor.register(PaSSTFeatureExtractor, PaSSTFeatureExtractor, exist_ok=True)
AutoModel.register(ASTConfig, ASTModel, exist_ok=True)
AutoModelForAudioClassification.register(ASTConfig, ASTForAudioClassification, exist_ok=True)

__all__ = [
    "ASTConfig",
    "ASTFeatureExtractor",
    "ASTForAudioClassification",
    "ASTModel",
    "ASTPreTrainedModel",
    "AudioError",
    "ModelError",
    "PaSSTFeatureExtractor",
    "load_imagenet_checkpoint",
    "load_original_checkpoint",
    "load_waveform",
]
