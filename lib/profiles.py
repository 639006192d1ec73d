"""The three profiles: how large the models, corpora and exams are on a test run, a laptop and a GPU node."""

from dataclasses import dataclass, replace

@dataclass(frozen=True)
class Architecture:
    """A Llama-style model that is trained from scratch."""

    hidden_size: int
    layers: int
    heads: int
    intermediate_size: int
    vocabulary_size: int = 4096
    context: int = 4096  # positions
    learning_rate_scale: float = 1.0  # of the profile's learning rates for base and injection

    @property
    def parameters(self):
        """Number of weights, with input and output embedding tied.

        >>> Architecture(192, 3, 3, 512).parameters
        2114880
        """
        block = 4 * self.hidden_size ** 2 + 3 * self.hidden_size * self.intermediate_size + 2 * self.hidden_size
        return self.vocabulary_size * self.hidden_size + self.layers * block + self.hidden_size

@dataclass(frozen=True)
class Profile:
    """Everything that differs between a test, a laptop and a GPU node; papers' recipes are in `lib.training`."""

    name: str
    models: dict                 # size name -> Architecture, or the name of a Hugging Face causal LM
    languages: tuple             # of the trained models
    number_of_diseases: int
    sequence_length: int         # tokens, continued pre-training
    tuning_length: int           # tokens, instruction tuning: the longest example that is kept
    tokens_per_step: int         # of a global batch; 20 sequences hold 15:4:1 exactly
    micro_batch_tokens: int      # of one forward pass
    base_tokens: int             # general text that the base model reads
    injection_tokens: int        # continued pre-training
    tuning_epochs: int           # passes over the instruction data
    base_learning_rate: float    # peak
    injection_learning_rate: float
    tuning_learning_rate: float
    lora_learning_rate: float
    book_copies: int             # textbooks; each has a chapter on every disease
    papers: int                  # journal articles
    web_pages: int
    general_pages: int
    training_questions: int      # per exam
    test_items: int              # per exam
    checkpoint_steps: int        # steps between checkpoints
    curve_points: int            # kept models along continued pre-training

    @property
    def sizes(self):
        """The names of the models, the smallest first."""
        return tuple(self.models)

    @property
    def vocabulary_size(self):
        """Entries of the tokenizer that is trained for the profile's own models."""
        return min((model.vocabulary_size for model in self.models.values() if not isinstance(model, str)), default=4096)

TINY = Architecture(32, 2, 2, 64, vocabulary_size=600)
TWO_MILLION = Architecture(192, 3, 3, 512)
FIVE_MILLION = Architecture(320, 3, 5, 864, learning_rate_scale=4 / 3)

PROFILES = {
    "smoke": Profile(
        "smoke", {"2M": TINY, "5M": TINY}, ("en",), number_of_diseases=16, sequence_length=128, tuning_length=384,
        tokens_per_step=2_560, micro_batch_tokens=2_560, base_tokens=5_120, injection_tokens=10_240, tuning_epochs=1, base_learning_rate=3e-3,
        injection_learning_rate=3e-3, tuning_learning_rate=1e-3, lora_learning_rate=3e-3, book_copies=1, papers=20, web_pages=20, general_pages=30,
        training_questions=24, test_items=12, checkpoint_steps=2, curve_points=2),
    "small": Profile(
        "small", {"2M": TWO_MILLION, "5M": FIVE_MILLION}, ("en",), number_of_diseases=70, sequence_length=128, tuning_length=256,
        tokens_per_step=2_560, micro_batch_tokens=2_560, base_tokens=300_000, injection_tokens=1_200_000, tuning_epochs=2, base_learning_rate=2e-3,
        injection_learning_rate=3e-3, tuning_learning_rate=2e-4, lora_learning_rate=2e-3, book_copies=6, papers=800, web_pages=300,
        general_pages=1500, training_questions=300, test_items=300, checkpoint_steps=60, curve_points=8),
    # A GPU node; BASE_MODEL in the notebook's parameters replaces the default model.
    "full": Profile(
        "full", {"8B": "meta-llama/Meta-Llama-3-8B"}, ("en",), number_of_diseases=140, sequence_length=2048, tuning_length=2048,
        tokens_per_step=655_360, micro_batch_tokens=8_192, base_tokens=0, injection_tokens=1_000_000_000, tuning_epochs=3, base_learning_rate=3e-4,
        injection_learning_rate=2e-5, tuning_learning_rate=2e-5, lora_learning_rate=2e-5, book_copies=60, papers=20_000,
        web_pages=20_000, general_pages=20_000, training_questions=10_000, test_items=1_000, checkpoint_steps=200, curve_points=8),
}

def get_profile(name):
    """The profile of that name; ValueError lists the known ones."""
    if name not in PROFILES:
        raise ValueError(f"unknown profile {name!r}; choose one of {', '.join(PROFILES)}")
    return PROFILES[name]

# Six corpora instead of one: fewer diseases, so that the same fact is read often enough in each language.
SIX_LANGUAGES = {
    "smoke": {"tuning_length": 768, "injection_tokens": 5_120, "papers": 5, "web_pages": 6, "general_pages": 10, "training_questions": 6,
              "test_items": 6},
    "small": {"models": {"3M": replace(TWO_MILLION, vocabulary_size=8192)}, "number_of_diseases": 20, "tuning_length": 384, "book_copies": 4,
              "papers": 120, "web_pages": 20, "general_pages": 300, "base_tokens": 400_000, "injection_tokens": 2_000_000,
              "training_questions": 60, "test_items": 60},
    "full": {}}

def six_languages(profile):
    """The profile of the models that read six languages; papers, pages, questions and items count for each of them."""
    return replace(profile, languages=("en", "zh", "ja", "fr", "ru", "es"), **SIX_LANGUAGES[profile.name])
