"""What an encoder reads beside the words: the document's embedding from a model that was trained elsewhere.

Shapes: B documents, E dimensions of the embedding, H width of the hidden layer.
"""

import torch
from torch import Tensor, nn

from vae_core.batch import Batch
from vae_core.errors import Misuse

WEIGHT_STD = 0.095
"""Makes an embedding of unit length add about as much to the hidden layer as the words do at the start."""


class JoinedEmbedding(nn.Module):
    """s W (e - m), added to the hidden layer before its ReLU; m and s make them centred, of about unit length.

    Sentence encoders' vectors lie in a narrow cone, whose mean says nothing of a document.
    """

    def __init__(self, dimensions: int, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dimensions, width, bias=False)
        nn.init.normal_(self.linear.weight, std=WEIGHT_STD)
        self.centre: Tensor
        self.scale: Tensor
        self.register_buffer("centre", torch.zeros(dimensions))
        self.register_buffer("scale", torch.ones(()))

    def forward(self, batch: Batch) -> Tensor:
        """(B, H). Raises Misuse for documents without embeddings."""
        joined: Tensor = self.linear(self.centred(batch))
        return joined

    def centred(self, batch: Batch) -> Tensor:
        """s (e - m), (B, E). Raises Misuse for documents without embeddings."""
        if batch.embeddings is None:
            raise Misuse("this encoder reads documents' embeddings beside their words, and these have none")
        return (batch.embeddings - self.centre) * self.scale

    def start_from(self, sample: Batch) -> None:
        """Take the mean, and the root mean square of the distance to it, from a sample of the corpus."""
        if sample.embeddings is None:
            raise Misuse("the sample's documents have no embeddings, and this encoder reads them")
        centre = sample.embeddings.double().mean(dim=0)
        spread = (sample.embeddings.double() - centre).square().sum(dim=1).mean().sqrt()
        self.centre.copy_(centre)
        self.scale.copy_(1 / spread.clamp(min=1e-6))
