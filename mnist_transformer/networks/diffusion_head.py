"""The head of MAR (arXiv 2406.11838): diffusion of one token, given a transformer's state.

Shapes: N tokens, K noise draws per token, I values of a token, D dim, W width.
"""

import torch
from torch import Tensor, nn

from mnist_transformer.networks.diffusion import time_features
from mnist_transformer.networks.transformer import MLP, modulate, rms_norm

NUM_TIME_FEATURES = 32


class DiffusionHead(nn.Module):
    """Residual MLPs with adaptive norms: state and time add up in scales, shifts and gates.

    The state's part is computed once per patch, for all noise draws and steps (``modulation``).
    """

    def __init__(
        self, num_pixels: int, state_dim: int, width: int, depth: int, mlp_dim: int
    ) -> None:
        super().__init__()
        self.num_chunks = 3 * depth + 2
        self.input = nn.Linear(num_pixels, width)
        # A matrix each, so that Muon does not mix scales, shifts and gates.
        self.state = nn.ModuleList(nn.Linear(state_dim, width) for _ in range(self.num_chunks))
        self.time = nn.Linear(NUM_TIME_FEATURES, self.num_chunks * width)
        self.mlps = nn.ModuleList(MLP(width, mlp_dim) for _ in range(depth))
        self.output = nn.Linear(width, num_pixels)
        for linear in (self.time, self.output):
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)

    def modulation(self, z_ND: Tensor) -> Tensor:
        """(N, 1, chunks * W): the state's part of all scales, shifts and gates."""
        return torch.cat([linear(z_ND) for linear in self.state], dim=-1)[:, None]

    def forward(self, x_NKI: Tensor, t: Tensor, modulation: Tensor) -> Tensor:
        """Predictions (N, K, I) from noisy patches; t broadcasts to (N, K)."""
        time = self.time(time_features(t, NUM_TIME_FEATURES))
        chunks = (modulation + time).chunk(self.num_chunks, dim=-1)
        x_NKW = self.input(x_NKI)
        for i, mlp in enumerate(self.mlps):
            shift, scale, gate = chunks[3 * i : 3 * i + 3]
            x_NKW = x_NKW + (1 + gate) * mlp(modulate(rms_norm(x_NKW), shift, scale))
        return self.output(modulate(rms_norm(x_NKW), *chunks[-2:]))
