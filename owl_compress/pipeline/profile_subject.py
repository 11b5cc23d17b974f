"""What a sensitivity profile is measured of: a model, a backend and texts; and what it may cost."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from time import perf_counter
from typing import Any

from owl_compress.checkpoints.loading import LoadedModel
from owl_compress.compression.contract import Backend
from owl_compress.data.text import Chats, Text
from owl_compress.data.windows import TokenWindows
from owl_compress.device import resolve_device
from owl_compress.documents.notes import NO_NOTES, Notes
from owl_compress.documents.provenance import ModelIdentity
from owl_compress.documents.recipe import Recipe
from owl_compress.documents.recipe_fields import DEFAULT_SAMPLES
from owl_compress.documents.sensitivity import SensitivityProfile
from owl_compress.importance.cost import ProfileCost, forward_tokens, unmeasured
from owl_compress.importance.parts import find_parts
from owl_compress.importance.profile import ProfileOptions, ProfileRun, profile
from owl_compress.importance.reference import DenseReference
from owl_compress.models.limits import resolve_seq_len
from owl_compress.models.state import evaluation_mode
from owl_compress.models.structure import ModelStructure
from owl_compress.pipeline.profile_settings import DEFAULT_DAMAGE_LEN, ProfileSettings
from owl_compress.pipeline.windows import held_apart
from owl_compress.progress import SILENT, Progress

Told = Callable[[str], None]
"""Who is told in a line what is about to be done."""

NotesFor = Callable[[TokenWindows], Notes]
"""Where notes are taken of a profile whose damage is measured on these windows."""


@dataclass(frozen=True)
class ProfileForecast:
    """What a profile would try, and what it takes."""

    settings: ProfileSettings
    n_parts: int
    cost: ProfileCost

    def as_json(self) -> dict[str, Any]:
        """In plain values."""
        return {
            "part": self.settings.part.value,
            "parts": self.n_parts,
            "levels": list(self.settings.levels),
            "measure": self.settings.measure.value,
            "damage_samples": self.settings.damage_samples,
            **asdict(self.cost),
        }


@dataclass(frozen=True)
class Subject:
    """What is profiled, on what text and where: everything is loaded, read and found.

    Attributes:
        loaded, structure, identity: the model.
        backend: who compresses.
        statistics: windows that the backend sees; None where it sees none, and none are read.
        text: that windows of damage are drawn from.
        names: of the linears that are in parts.
        recipe: for the seed, the place of the BOS token, and the batch size.
        progress: who is told how far it is.
    """

    loaded: LoadedModel
    structure: ModelStructure
    identity: ModelIdentity
    backend: Backend
    statistics: TokenWindows | None
    text: Text | Chats
    names: frozenset[str]
    recipe: Recipe
    progress: Progress = SILENT

    def profiled(
        self,
        settings: ProfileSettings,
        known: SensitivityProfile | None = None,
        told: Told = lambda _: None,
        notes_for: NotesFor = lambda _: NO_NOTES,
    ) -> SensitivityProfile:
        """Measure the profile, or what `known` lacks of it and is not noted yet.

        Raises:
            RequestError: see `owl_compress.importance.profile.profile`; or it costs more than it may.
        """
        settings, _ = self.affordable(settings, known)
        damage = self.damage_windows(settings)
        return profile(
            self.loaded.model,
            self.backend,
            self.statistics,
            damage,
            ProfileOptions(
                part=settings.part,
                levels=settings.levels,
                grid=settings.grid,
                measure=settings.measure,
                positions=settings.positions,
                names=self.names,
                is_optional=settings.are_levels_open,
            ),
            ProfileRun(
                device=resolve_device(self.recipe.device),
                batch_size=self.recipe.batch_size,
                progress=self.progress,
                announce=lambda cost: told(cost_in_words(cost)),
                notes=notes_for(damage),
            ),
            known=known,
            structure=self.structure,
            identity=self.identity,
        )

    def forecast(self, settings: ProfileSettings, known: SensitivityProfile | None = None) -> ProfileForecast:
        """What `profiled` would do; the dense model is run over the windows of damage, for the time it takes.

        Raises:
            RequestError: see `affordable`.
        """
        settings, tokens = self.affordable(settings, known)
        damage = self.damage_windows(settings)
        device, start = resolve_device(self.recipe.device), perf_counter()
        with evaluation_mode(self.loaded.model):
            DenseReference.of(self.loaded.model, self.structure, damage, device, progress=self.progress)
        seconds = (perf_counter() - start) / damage.ids.numel() * tokens
        parts = find_parts(self.structure, settings.part, self.names)
        n_trials = len(unmeasured(parts, settings.levels, known))
        return ProfileForecast(settings, len(parts), ProfileCost(n_trials, tokens, seconds))

    def affordable(
        self, settings: ProfileSettings, known: SensitivityProfile | None = None
    ) -> tuple[ProfileSettings, float]:
        """The settings with what was left open chosen by cost, and the forward tokens that it takes then.

        Raises:
            RequestError: the least costs more than it may.
        """
        longest = resolve_seq_len(None, self.loaded.model.config)
        cost = partial(self._cost, settings, known, self._damage_len(settings))
        found = settings.affordable(cost, DEFAULT_SAMPLES * longest)
        return found, cost(found.damage_samples or 0, found.levels)

    def damage_windows(self, settings: ProfileSettings) -> TokenWindows:
        """The windows that a profile with these affordable settings is measured on."""
        taken = () if self.statistics is None else (self.statistics,)
        return self.windows_apart(settings.damage_samples or 0, self._damage_len(settings), taken)

    def _damage_len(self, settings: ProfileSettings) -> int:
        return resolve_seq_len(
            settings.damage_len, self.loaded.model.config, DEFAULT_DAMAGE_LEN, "--damage-len"
        )

    def windows_apart(
        self, samples: int, length: int, taken: tuple[TokenWindows, ...], further_seed: int = 0
    ) -> TokenWindows:
        """Windows to measure damage on, which share nothing with those `taken`."""
        return held_apart(
            self.loaded,
            self.structure,
            self.text,
            taken,
            samples=samples,
            seq_len=length,
            seed=self.recipe.seed + further_seed,
            bos=self.recipe.bos,
            progress=self.progress,
        )

    def _cost(
        self,
        settings: ProfileSettings,
        known: SensitivityProfile | None,
        length: int,
        n_windows: int,
        levels: tuple[float, ...],
    ) -> float:
        """Forward tokens of the trials that are still to be made."""
        parts = find_parts(self.structure, settings.part, self.names)
        places = {site.name: index for index, site in enumerate(self.structure.blocks)}
        trials = [places[part.block] for part, _ in unmeasured(parts, levels, known)]
        n_seen = self.statistics.ids.numel() if self.statistics and self.backend.statistic else 0
        return forward_tokens(trials, len(places), n_windows * length, n_seen, settings.measure)


def cost_in_words(cost: ProfileCost) -> str:
    """What a profile is going to take, in a line."""
    return (
        f"{cost.trials:,} trials, as much as {cost.forward_tokens:,.0f} tokens through the model: about "
        f"{cost.seconds:,.0f} s and what the backend takes"
    )
