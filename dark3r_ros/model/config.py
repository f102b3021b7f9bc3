# SPDX-License-Identifier: Apache-2.0
"""Sizes of the two-view network.

The defaults are those of the public MASt3R large model; `PRESETS` holds our own smaller ones.
"""

from __future__ import annotations

from dataclasses import dataclass

from dark3r_ros.config import Config, setting
from dark3r_ros.errors import ConfigError

HEADS = ('dpt', 'linear')


@dataclass(frozen=True)
class NetworkConfig(Config):
    """Architecture of a `TwoViewNetwork`; together with the weights it determines every output.

    Raises ConfigError when sizes contradict each other.
    """

    enc_embed_dim: int = setting(1024, 'width of an encoder token', minimum=4)
    enc_depth: int = setting(24, 'encoder blocks', minimum=1)
    enc_num_heads: int = setting(16, 'attention heads of an encoder block', minimum=1)
    dec_embed_dim: int = setting(768, 'width of a decoder token', minimum=4)
    dec_depth: int = setting(12, 'decoder blocks of each view', minimum=1)
    dec_num_heads: int = setting(12, 'attention heads of a decoder block', minimum=1)
    in_channels: int = setting(3, 'planes of an input image', minimum=1)
    patch_size: int = setting(16, 'side of the square patch behind one token', unit='px', minimum=1)
    mlp_ratio: float = setting(4.0, 'hidden width of an MLP over its input width', minimum=0.25)
    rope_base: float = setting(100.0, 'frequency base of the rotary position embedding', minimum=1.0)
    norm_eps: float = setting(1e-6, 'epsilon of every layer normalisation', minimum=1e-12)
    desc_dim: int = setting(24, 'channels of a local descriptor', minimum=1)
    head: str = setting('dpt', 'head that gives points and confidence', choices=HEADS)
    output_stride: int = setting(1, 'image pixels between neighbouring output values', unit='px', minimum=1)
    local_ratio: float = setting(4.0, 'hidden width of the descriptor head over its input width', minimum=0.25)
    dpt_feature_dim: int = setting(256, 'channels of the fused maps of the DPT head', minimum=2)
    dpt_last_dim: int = setting(128, 'channels before the last convolution of the DPT head', minimum=1)
    dpt_layer_dims: tuple[int, ...] = setting((96, 192, 384, 768), 'channels of the four levels of the DPT head')
    dpt_hooks: tuple[int, ...] = setting(
        (), 'decoder outputs that feed the DPT head, 0 being the encoder; empty: 0, 1/2, 3/4 and all of the depth'
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for side, width, heads in (
            ('encoder', self.enc_embed_dim, self.enc_num_heads),
            ('decoder', self.dec_embed_dim, self.dec_num_heads),
        ):
            if width % heads or (width // heads) % 4:
                raise ConfigError(
                    f'{side} width {width} over {heads} heads: the share of a head must be a multiple of 4 '
                    '(half a head for each image axis, turned in pairs of channels)'
                )
        if self.patch_size % self.output_stride:
            raise ConfigError(f'output_stride {self.output_stride} does not divide the patch size {self.patch_size}')
        if self.head == 'dpt':
            self._check_dpt()

    def _check_dpt(self) -> None:
        if self.patch_size != 16 or self.output_stride != 1:
            raise ConfigError(
                'the DPT head multiplies the token grid by 16: it needs patch_size 16 and output_stride 1, '
                f'got {self.patch_size} and {self.output_stride}'
            )
        if len(self.dpt_layer_dims) != 4 or len(self.hooks) != 4:
            raise ConfigError(
                f'the DPT head has four levels; got dpt_layer_dims {self.dpt_layer_dims} and dpt_hooks {self.hooks}'
            )
        if not all(0 <= hook <= self.dec_depth for hook in self.hooks):
            raise ConfigError(f'dpt_hooks {self.hooks} leave the range 0..{self.dec_depth} of the decoder')

    @property
    def hooks(self) -> tuple[int, ...]:
        """Indices into [encoder output, decoder output 1, ..] that feed the four levels of the DPT head."""
        depth = self.dec_depth
        return self.dpt_hooks or (0, depth // 2, depth * 3 // 4, depth)


def _compact(width: int, enc_depth: int, dec_depth: int, head_dim: int = 64) -> NetworkConfig:
    heads = width // head_dim
    return NetworkConfig(
        enc_embed_dim=width,
        enc_depth=enc_depth,
        enc_num_heads=heads,
        dec_embed_dim=width,
        dec_depth=dec_depth,
        dec_num_heads=heads,
        head='linear',
        output_stride=4,
        local_ratio=1.0,
    )


PRESETS: dict[str, NetworkConfig] = {
    'mast3r-large': NetworkConfig(),
    'compact-10m': _compact(256, 6, 2),
    'mini-2m': _compact(128, 4, 2, head_dim=32),
}


def preset(name: str) -> NetworkConfig:
    """Return a named configuration; ConfigError lists the known names."""
    if name not in PRESETS:
        raise ConfigError(f'unknown network {name!r}; known: {", ".join(PRESETS)}')
    return PRESETS[name]
