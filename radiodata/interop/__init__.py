"""Into other frameworks' hands: loaders in one line, TorchIO's subjects, MONAI's MetaTensor."""

from radiodata.interop.loaders import create_training_dataloader, create_validation_dataloader
from radiodata.interop.monai import ToMetaTensor
from radiodata.interop.torchio import subjects_dataset

__all__ = ["ToMetaTensor", "create_training_dataloader", "create_validation_dataloader", "subjects_dataset"]
