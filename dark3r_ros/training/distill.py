# SPDX-License-Identifier: Apache-2.0
"""Distillation: a frozen teacher sees the clean pair, the student the noisy one, and learns to see the same.

The student's features, descriptors and correspondence maps (similarities of local descriptors between the views) are
drawn to the teacher's by their squared error over the teacher's variance. A smaller weight does the same on clean
pairs, so that light is not forgotten. The matching losses of known geometry can be added or used alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from dark3r_ros.config import Config, setting
from dark3r_ros.errors import ConfigError
from dark3r_ros.model.mini import MiniNetwork
from dark3r_ros.training.batch import PairData, TrainingPairs
from dark3r_ros.training.exposure import ExposureConfig, clean_input
from dark3r_ros.training.features import Compared, Subject
from dark3r_ros.training.losses import MiniViews, matching_losses
from dark3r_ros.training.two_view import two_view_matching


@dataclass(frozen=True)
class DistillConfig(Config):
    """Weights of the losses; a weight of zero leaves the loss out."""

    encoder: float = setting(1.0, 'Weight of the encoder features.', minimum=0.0)
    decoder: float = setting(1.0, 'Weight of the decoder features; for mini, of its descriptors.', minimum=0.0)
    correspondence: float = setting(1.0, 'Weight of the correspondence maps, by squared error.', minimum=0.0)
    distribution: float = setting(
        0.0, "Weight of the divergence of the student's chances of a match from the teacher's.", minimum=0.0
    )
    matching: float = setting(0.0, 'Weight of matching the noisy pair against the true geometry.', minimum=0.0)
    flattening: float = setting(
        0.0, "Weight of the squared slope by which mini's matches lose relief, beside `matching`.", minimum=0.0
    )
    reliability: float = setting(
        0.3, "Weight of mini's chances that a match is right and a place seen, against the truth.", minimum=0.0
    )
    clean: float = setting(0.3, 'Weight of the same losses on the clean pair.', minimum=0.0)
    clean_share: float = setting(
        0.25, 'Share of the pairs that the clean term looks at, to save time.', minimum=0.0, maximum=1.0
    )
    cells: int = setting(128, 'Places of a whose similarity to all of b is compared.', minimum=1)
    encoder_layers: tuple[str, ...] = setting((), 'Layers compared: names for mini, numbers else; empty: the last.')
    decoder_layers: tuple[int, ...] = setting((), 'Decoder blocks compared; empty: the last.')

    @property
    def distils(self) -> bool:
        """Whether any loss looks at the teacher."""
        return max(self.encoder, self.decoder, self.correspondence, self.distribution) > 0

    @property
    def encoder_only(self) -> bool:
        """Whether no loss looks behind the encoder."""
        return max(self.decoder, self.correspondence, self.distribution, self.matching) == 0


def supervised(config: DistillConfig | None = None) -> DistillConfig:
    """Losses of the direct way: matching on noisy pairs, no teacher."""
    config = config or DistillConfig()
    return replace(config, encoder=0.0, decoder=0.0, correspondence=0.0, distribution=0.0, clean=0.0, matching=1.0)


def scaled_error(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared error of maps (B, C, ...) over the variance of the teacher's channels."""
    teacher = teacher.float()
    rest = [axis for axis in range(teacher.ndim) if axis != 1]
    variance = teacher.var(dim=rest, correction=0).mean().clamp(min=1e-8)
    return functional.mse_loss(student.float(), teacher) / variance


def similarities(descriptors: Tensor, cells: Tensor) -> Tensor:
    """Similarity (2B, P, h * w) of some places of each view to all of the other.

    Parameters
    ----------
    descriptors: (2B, D, h, w), all of a, then all of b. cells: (2B, P) indices into h * w.

    """
    flat = descriptors.float().flatten(2)
    chosen = flat.gather(2, cells[:, None].expand(-1, flat.shape[1], -1))
    return chosen.transpose(1, 2) @ flat.roll(len(flat) // 2, dims=0)


class DistillTask:
    """What a step of distillation does, for `loop.Trainer`.

    Parameters
    ----------
    student: trained. teacher: frozen; None where no loss needs it. data: pairs. config: weights.
    exposure: how the clean pair is given to the networks. precision: of the forward pass; `bf16` is autocast.

    """

    def __init__(
        self,
        student: Subject,
        teacher: Subject | None,
        data: PairData,
        config: DistillConfig,
        exposure: ExposureConfig | None = None,
        *,
        precision: str = 'fp32',
    ) -> None:
        self.student, self.teacher, self.data, self.config = student, teacher, data, config
        self.exposure = exposure or ExposureConfig()
        self.network = student.network
        self.device = data.device
        self._autocast = precision == 'bf16'
        if config.distils and teacher is None:
            raise ConfigError('distillation needs a teacher')
        if config.matching > 0 and not data.knows_truth:
            raise ConfigError('matching losses need pairs with known geometry: simulated ones or textures')
        if not config.distils and not config.matching:
            raise ConfigError('all weights of the losses are zero: nothing would be learnt')
        if teacher is not None:
            teacher.network.eval().requires_grad_(False)

    def make(self, number: int, count: int) -> TrainingPairs:
        """Training pairs of a part of a step."""
        return self.data.make(number, count)

    def losses(self, pairs: TrainingPairs, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Total of a batch and its parts."""
        config = self.config
        count = len(pairs)
        few = math.ceil(count * config.clean_share) if config.distils and config.clean > 0 else 0
        clean = [clean_input(view, self.exposure) for view in (pairs.clean_a, pairs.clean_b)]
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._autocast):
            goal = None
            if config.distils and self.teacher is not None:
                with torch.no_grad():
                    goal = self.teacher.look(*clean)
            # Noisy and clean views together, so that batch statistics are those of both.
            seen = self.student.look(
                torch.cat([pairs.image_a, clean[0][:few]]), torch.cat([pairs.image_b, clean[1][:few]])
            )
        parts: dict[str, Tensor] = {}
        total = torch.zeros((), device=self.device)
        dark = seen.select(slice(count))
        if goal is not None:
            compared = self._compare(dark, goal, generator)
            parts |= compared
            total = total + self._weighted(compared)
        if goal is not None and few:
            light = self._compare(seen.select(slice(count, count + few)), goal.select(slice(few)), generator)
            total = total + config.clean * self._weighted(light)
            parts |= {f'clean_{name}': value for name, value in light.items()}
        matched, value = self._match(dark, pairs, generator)
        return total + value, parts | matched

    def _weighted(self, parts: dict[str, Tensor]) -> Tensor:
        weighted = [getattr(self.config, name) * value for name, value in parts.items()]
        return torch.stack(weighted).sum()

    def _compare(self, student: Compared, teacher: Compared, generator: torch.Generator) -> dict[str, Tensor]:
        """The losses between student and teacher that have a weight."""
        config = self.config
        found: dict[str, Tensor] = {}
        for name in ('encoder', 'decoder'):
            if getattr(config, name) > 0:
                both = zip(getattr(student, name), getattr(teacher, name), strict=True)
                errors = [scaled_error(mine, goal) for mine, goal in both]
                found[name] = torch.stack(errors).mean()
        if max(config.correspondence, config.distribution) == 0:
            return found
        for mine, goal in zip(student.descriptors, teacher.descriptors, strict=True):
            order = torch.rand(len(mine), mine[0, 0].numel(), generator=generator, device=self.device).argsort(dim=1)
            cells = order[:, : config.cells]
            for name, value in self._correspondence(similarities(mine, cells), similarities(goal, cells)).items():
                found[name] = found.get(name, torch.zeros_like(value)) + value / len(student.descriptors)
        return found

    def _correspondence(self, mine: Tensor, goal: Tensor) -> dict[str, Tensor]:
        """Losses of correspondence maps (2B, P, h * w) that have a weight."""
        config = self.config
        found: dict[str, Tensor] = {}
        if config.correspondence > 0:
            variance = goal.var(correction=0).clamp(min=1e-8)
            found['correspondence'] = functional.mse_loss(mine, goal) / variance
        if config.distribution > 0:
            assert self.teacher is not None
            wanted = functional.log_softmax(self.teacher.temperature.to(goal) * goal, dim=2)
            given = functional.log_softmax(self.student.temperature.to(mine) * mine, dim=2)
            divergence = functional.kl_div(given, wanted, reduction='none', log_target=True)
            found['distribution'] = divergence.sum(2).mean()
        return found

    def _match(
        self, dark: Compared, pairs: TrainingPairs, generator: torch.Generator
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Matching losses of the noisy pair and their weighted sum."""
        config = self.config
        nothing = torch.zeros((), device=self.device)
        if isinstance(dark.output, MiniViews):
            if config.matching == 0 and (config.reliability == 0 or not self.data.knows_truth):
                return {}, nothing
            assert isinstance(self.network, MiniNetwork)
            losses = matching_losses(self.network, dark.output, pairs, generator)
            total = config.matching * losses.matching + config.reliability * losses.chances
            total = total + config.flattening * losses.flattening
            return losses.figures(), total
        if config.matching == 0 or dark.output is None:
            return {}, nothing
        matching, right = two_view_matching(dark.output, pairs, generator)
        return {'matching': matching.detach(), 'right': right}, config.matching * matching
