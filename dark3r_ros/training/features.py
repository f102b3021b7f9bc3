# SPDX-License-Identifier: Apache-2.0
"""What teacher and student are compared on: maps inside the networks and the descriptors that they match with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from dark3r_ros.errors import ConfigError
from dark3r_ros.model.mini import MiniNetwork
from dark3r_ros.model.network import TwoViewNetwork, ViewPrediction
from dark3r_ros.training.losses import MiniViews, look

# Every how many-th row and column of mini's fine descriptors is compared.
_FINE_STRIDE = 3


@dataclass(frozen=True, eq=False)
class Compared:
    """Maps of N pairs, all views a first, then all b.

    Attributes
    ----------
    encoder, decoder: maps (2N, C, ...). descriptors: (2N, D, h, w) of unit length, of each kind that is matched.
    output: what the network gave, for the matching losses; None where it was left out.

    """

    encoder: tuple[Tensor, ...]
    decoder: tuple[Tensor, ...]
    descriptors: tuple[Tensor, ...]
    output: MiniViews | tuple[ViewPrediction, ViewPrediction] | None

    def select(self, chosen: slice) -> Compared:
        """The maps of some of the pairs."""

        def rows(values: Tensor) -> Tensor:
            half = len(values) // 2
            if chosen.indices(half) == (0, half, 1):
                return values
            return torch.cat([values[:half][chosen], values[half:][chosen]])

        output = self.output
        if isinstance(output, MiniViews):
            output = output.select(chosen)
        elif output is not None:
            first, second = (ViewPrediction(*(part[chosen] for part in view)) for view in output)
            output = first, second
        encoder, decoder = tuple(map(rows, self.encoder)), tuple(map(rows, self.decoder))
        return Compared(encoder, decoder, tuple(map(rows, self.descriptors)), output)


class Subject(Protocol):
    """A network that takes part in a distillation."""

    @property
    def network(self) -> nn.Module:
        """The module."""

    @property
    def temperature(self) -> Tensor:
        """Factor of similarities before a softmax, one value."""

    def look(self, images_a: Tensor, images_b: Tensor) -> Compared:
        """Run the network on both views (N, 3, H, W) of pairs."""


class Tap:
    """Collects the outputs of some modules while the network runs."""

    def __init__(self, network: nn.Module, names: Sequence[str]) -> None:
        known = dict(network.named_modules())
        for name in names:
            if name not in known:
                near = sorted({key for key in known if key and key.count('.') <= name.count('.')})
                raise ConfigError(f'the network has no layer {name!r}; known: {", ".join(near[:40])}')
        self._order = {id(known[name]): number for number, name in enumerate(names)}
        self._kept: list[list[Tensor]] = [[] for _ in names]
        for name in names:
            known[name].register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, _: Any, output: Tensor) -> None:
        self._kept[self._order[id(module)]].append(output)

    def take(self) -> list[list[Tensor]]:
        """Outputs a module, in the order of the names, and forget them."""
        found = [list(kept) for kept in self._kept]
        for kept in self._kept:
            kept.clear()
        return found


class MiniSubject:
    """`mini`: its features at 1/8 and 1/16, or the outputs of the modules `layers`, and all its descriptors."""

    def __init__(self, network: MiniNetwork, layers: Sequence[str] = ()) -> None:
        self.network = network
        self._tap = Tap(network, layers) if layers else None

    @property
    def temperature(self) -> Tensor:
        """See `Subject`."""
        return self.network.coarse_factor

    def look(self, images_a: Tensor, images_b: Tensor) -> Compared:
        """See `Subject.look`."""
        views = look(self.network, images_a, images_b)
        context = views.output.context
        assert context is not None
        # The first run of a layer is that on the images themselves.
        encoder = tuple(kept[0] for kept in self._tap.take()) if self._tap else (context.eighth, context.sixteenth)
        descriptors = [functional.normalize(views.output.coarse, dim=1)]
        if views.pair is not None:
            descriptors.append(torch.cat([view.coarse for view in views.pair]))
        fine = functional.normalize(views.output.fine[:, :, ::_FINE_STRIDE, ::_FINE_STRIDE], dim=1)
        return Compared(encoder, (*descriptors, fine), tuple(descriptors), views)


class TwoViewSubject:
    """A network of the MASt3R family.

    Parameters
    ----------
    network: it. encoder_layers: blocks of the encoder, empty for its normalised output. decoder_layers: blocks of the
        decoders, empty for the last one.
    encoder_only: whether decoder and heads are left out, where no loss looks at them.

    """

    def __init__(
        self,
        network: TwoViewNetwork,
        encoder_layers: Sequence[int] = (),
        decoder_layers: Sequence[int] = (),
        *,
        encoder_only: bool = False,
    ) -> None:
        self.network, self._encoder_only = network, encoder_only
        config = network.config
        for side, layers, depth in (
            ('encoder', encoder_layers, config.enc_depth),
            ('decoder', decoder_layers, config.dec_depth),
        ):
            wrong = [layer for layer in layers if not 0 <= layer < depth]
            if wrong:
                raise ConfigError(f'the {side} has no block {wrong[0]}: it has {depth}, counted from 0')
        self._encoder = Tap(network, [f'enc_blocks.{layer}' for layer in encoder_layers] or ['enc_norm'])
        last = [config.dec_depth - 1]
        names = [f'{blocks}.{n}' for n in decoder_layers or last for blocks in ('dec_blocks', 'dec_blocks2')]
        self._decoder = Tap(network, names)

    @property
    def temperature(self) -> Tensor:
        """The inverse temperature that MASt3R's matching loss was published with: 1 / 0.07."""
        return torch.tensor(1 / 0.07)

    def look(self, images_a: Tensor, images_b: Tensor) -> Compared:
        """See `Subject.look`."""
        if self._encoder_only:
            self.network.encode(torch.cat([images_a, images_b]))
            return Compared(tuple(kept[0].transpose(1, 2) for kept in self._encoder.take()), (), (), None)
        views = self.network(images_a, images_b)
        encoder = tuple(kept[0].transpose(1, 2) for kept in self._encoder.take())
        kept = [layer[0] for layer in self._decoder.take()]
        decoder = tuple(torch.cat(both).transpose(1, 2) for both in zip(kept[::2], kept[1::2], strict=True))
        descriptors = torch.cat([view.descriptors for view in views]).permute(0, 3, 1, 2)
        return Compared(encoder, decoder, (descriptors,), views)
