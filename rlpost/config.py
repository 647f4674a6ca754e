"""The one door to a run's configuration: compose, convert, check."""

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rlpost.checks import check
from rlpost.errors import ConfigError
from rlpost.objective_configs import objective_configs
from rlpost.paths import make_absolute
from rlpost.schema import RunConfig

_NOISE = re.compile(r"^\s*$|full_key:|reference_type=|object_type=|raised while composing")
_OPEN = ("task.parameters", ".node_labels")  # fields that hold whatever keys one gives them


def recipes_dir() -> Path:
    """Return the folder of recipes: the repository's, or the one inside the installed wheel."""
    package = Path(__file__).resolve().parent
    for folder in (package.parent / "recipes", package / "recipes"):
        if (folder / "config.yaml").is_file():
            return folder
    raise ConfigError(f"no recipes beside {package}: reinstall rlpost")


def register_schemas() -> None:
    """Tell Hydra the schema of a run and of each objective."""
    store = ConfigStore.instance()
    store.store(name="run_schema", node=RunConfig)
    for name, config in objective_configs.items():
        store.store(name=f"{name}_schema", node=config)  # in no group: nobody is to choose it


def load(recipe: str | None, overrides: Sequence[str] = ()) -> RunConfig:
    """Return the checked configuration of a recipe with overrides in Hydra's syntax.

    Raises:
        ConfigError: an unknown field, a wrong type, an impossible combination.
    """
    register_schemas()
    words = [*([f"recipe={recipe}"] if recipe else []), *overrides]
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(recipes_dir()), version_base="1.3"):
            composed = compose("config", words, return_hydra_config=True)
            HydraConfig.instance().set_config(composed)
            return convert(composed)
    except (HydraException, OmegaConfBaseException) as error:
        raise translated(error) from error


def load_run(run_dir: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Return the checked configuration of a run directory, with `field=value` overrides.

    Raises:
        ConfigError: there is none, or as for `load`.
    """
    path = run_dir / "config.yaml"
    if not path.is_file():
        raise ConfigError(f"{run_dir}: no run directory: config.yaml is not in it")
    try:
        found = OmegaConf.merge(OmegaConf.load(path), OmegaConf.from_dotlist(list(overrides)))
    except OmegaConfBaseException as error:
        raise translated(error) from error
    assert isinstance(found, DictConfig)
    return convert(found)


def convert(composed: DictConfig) -> RunConfig:
    """Return the typed, checked configuration of what Hydra composed."""
    OmegaConf.set_struct(composed, False)
    plain = OmegaConf.masked_copy(composed, [key for key in composed if key != "hydra"])
    try:
        OmegaConf.resolve(plain)
        missing = sorted(OmegaConf.missing_keys(plain))
        if missing:
            raise ConfigError(
                f"{missing[0]} is required and not set: add {missing[0]}=... to the command"
            )
        # As plain values: a field that `+` has added would pass, and be ignored, as part of a node.
        values = OmegaConf.to_container(plain)
        config = OmegaConf.to_object(OmegaConf.merge(_typed(plain.objective.name), values))
    except OmegaConfBaseException as error:
        raise translated(error) from error
    assert isinstance(config, RunConfig)
    check(config)
    if config.ray.address is not None:
        make_absolute(config)
    return config


def recipe_name() -> str:
    """Return the name of the recipe that was composed last in this process."""
    return HydraConfig.get().runtime.choices["recipe"] or "quickstart"


def _typed(objective: str) -> DictConfig:
    """Return the schema with the chosen objective's own fields; Hydra's result has lost both."""
    return OmegaConf.structured(RunConfig(objective=objective_configs[objective]()))


def translated(error: Exception) -> ConfigError:
    """Return Hydra's or OmegaConf's error as one sentence that names field, rule and remedy."""
    inner = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    if isinstance(error.__cause__, ConfigError):
        return error.__cause__
    text = str(inner)
    field = getattr(inner, "full_key", None) or ""
    if unknown := re.search(r"Key '(\w+)' (?:is )?not in", text):
        return _unknown_field(field or unknown.group(1))
    if no_option := re.search(r"Could not find '(\w+)/([^']+)'", text):
        options = sorted(p.stem for p in (recipes_dir() / no_option.group(1)).glob("*.yaml"))
        return ConfigError(
            f"{no_option.group(1)}={no_option.group(2)}: there is none of that name; available: "
            f"{', '.join(options)}"
        )
    key = re.search(r"full_key: (\S+)", text)
    field = field or (key.group(1) if key else "")
    said = [line for line in text.splitlines() if not _NOISE.search(line)]
    first = said[0].strip() if said else type(inner).__name__
    return ConfigError(f"{field}: {first}" if field and field not in first else first)


def _unknown_field(field: str) -> ConfigError:
    known = list(_fields(OmegaConf.to_container(OmegaConf.structured(RunConfig)), ""))
    parent = field.rpartition(".")[0]
    if parent.endswith(_OPEN):
        return ConfigError(f"{parent} has no {field} yet: add it with a plus sign, +{field}=...")
    close = difflib.get_close_matches(field, known, n=1, cutoff=0.5)
    hint = f"; did you mean {close[0]}?" if close else "; see --cfg job for all fields"
    return ConfigError(f"unknown field {field}{hint}")


def _fields(node: Any, prefix: str) -> Any:
    for key, value in node.items():
        yield f"{prefix}{key}"
        if isinstance(value, dict):
            yield from _fields(value, f"{prefix}{key}.")
