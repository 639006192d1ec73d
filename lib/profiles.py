"""The profiles: how large the models, corpora and exams are on a test run, a laptop, a GPU node and one GPU of it."""
from dataclasses import make_dataclass
import yaml
from lib.results import KNOWLEDGE
SETTINGS = yaml.safe_load((KNOWLEDGE / "profiles.yaml").read_text(encoding="utf-8"))

def fields_of(part):
    """What make_dataclass takes of a part of profiles.yaml: a field a line, with its default."""
    return [(name, object) if own is None else (name, object, tuple(own) if isinstance(own, list) else own) for name, own in SETTINGS[part].items()]
class Architecture(make_dataclass("Shape", fields_of("architecture"), frozen=True)):
    """A Llama-style model that is trained from scratch; lib/knowledge/profiles.yaml explains its fields."""

class Profile(make_dataclass("Settings", SETTINGS["profiles"], frozen=True)):
    """Everything that differs between a test, a laptop and a GPU node: a field for each line of lib/knowledge/profiles.yaml, which explains it."""
    @property
    def sizes(self):
        """The names of the models, the smallest first."""
        return tuple(self.models)
    @property
    def vocabulary_size(self):
        """Entries of the tokenizer that is trained for the profile's own models."""
        return min((model.vocabulary_size for model in self.models.values() if not isinstance(model, str)), default=4096)

ARCHITECTURES = {name: Architecture(**shape) for name, shape in SETTINGS["architectures"].items()}
def _profile(models, languages, **settings):
    models = {size: ARCHITECTURES.get(model, model) for size, model in models.items()}
    return Profile(models=models, languages=tuple(languages), **settings)
def _columns(table):
    return [{name: value for name, value in zip(table, column) if value is not None} for column in zip(*table.values(), strict=True)]

PROFILES = {column["name"]: _profile(**column) for column in _columns(SETTINGS["profiles"])}
SIX_LANGUAGES = {own["name"]: _profile(**own | changed) for own, changed in zip(_columns(SETTINGS["profiles"]), _columns(SETTINGS["six_languages"]))}

def get_profile(name, *, six_languages=False):
    """The profile of that name, or that of its models of six languages (papers, pages and items count for each); ValueError lists the known ones."""
    if name not in PROFILES:
        raise ValueError(f"unknown profile {name!r}; choose one of {', '.join(PROFILES)}")
    return (SIX_LANGUAGES if six_languages else PROFILES)[name]
