"""The tables of a plan: what each field means, which numbers it may hold, and its default.

Defaults are METHOD.md's "Defaults", with training as in its prototype. `Range` is checked by
`federation.plan_check`; `docs/plan-reference.md` is generated from here.
"""

from __future__ import annotations

from typing import Annotated, Literal

from federation.plan_encoders import MLP, EncoderOption, EncoderTensor
from federation.plan_fields import U32, Number, PlanTable, Range, about


class LabelClass(PlanTable):
    """One class that the model tells apart."""

    name: Annotated[str, about("Name of the class, for people.")]
    values: Annotated[tuple[str, ...], about("Values of the label column that mean this class, as text.")]


class Label(PlanTable):
    """What is predicted."""

    column: Annotated[str, about("Column of the label table.")]
    classes: Annotated[tuple[LabelClass, ...], about("At least two; the order is the order of the model's outputs.")]


class Column(PlanTable):
    """One column of a modality's table."""

    name: Annotated[str, about("Name of the column in the institutions' tables.")]
    kind: Annotated[Literal["numeric", "categorical"], about("What the column holds.")] = "numeric"
    low: Annotated[
        Number, about("Numeric: smaller values are clipped to this, before the transform. Below `high`.")
    ] = 0.0
    high: Annotated[Number, about("Numeric: larger values are clipped to this, before the transform.")] = 0.0
    transform: Annotated[
        Literal["none", "log1p"], about("Numeric: applied after clipping; `log1p` needs `low` above -1.")
    ] = "none"
    categories: Annotated[
        tuple[str, ...], about("Categorical: the values that are told apart; any other value is `other`.")
    ] = ()


class Modality(PlanTable):
    """One kind of data about a patient, with its encoder."""

    name: Annotated[str, about("Name of the modality: lower-case letters, digits, `-` and `_`.")]
    columns: Annotated[tuple[Column, ...], about("Its columns; at least one, here or in a file of `columns_file`.")]
    hidden: Annotated[
        tuple[U32, ...],
        Range(1, 131072),
        about("Of `mlp`: widths of the encoder's hidden layers; `model.encoding_width` is added as the last."),
    ] = (64,)
    kind: Annotated[
        str,
        about(
            "Kind of the encoder: `mlp`, fully connected; or one that all who hold this modality have installed "
            "and allowed (docs/encoders.md)."
        ),
    ] = MLP
    options: Annotated[tuple[EncoderOption, ...], about("What another kind is told.")] = ()
    tensors: Annotated[
        tuple[EncoderTensor, ...],
        about("The parameters of another kind, all of them, in the order of the vector that is summed."),
    ] = ()

    @property
    def widest_input(self) -> int:
        """Most input features that the modality can have, schema pending: a numeric column gives its value and a
        missing indicator, a categorical one a feature for each category, for `other` and for missing."""
        return sum(2 if c.kind == "numeric" else len(c.categories) + 2 for c in self.columns)


class Institution(PlanTable):
    """One legal institution of the roster."""

    name: Annotated[str, about("Name of the institution, as in its certificate.")]
    key: Annotated[str, about("Its certified identity key: the `p256:…` text that `consilium pki show` prints.")]
    modalities: Annotated[tuple[str, ...], about("The modalities that it holds.")]
    combinations: Annotated[
        tuple[str, ...],
        about(
            "Where its patients lack modalities one by one: the combinations that they come in, `mrna+image`, each of "
            "two or more patients of one class. A patient counts as the largest of them that it has all of. Left out: "
            "every patient has all of `modalities`. The list tells everybody in the run that such patients are there."
        ),
    ] = ()


class ComponentRule(PlanTable):
    """What is trained and sent of one component. One without an entry is summed whole in every round."""

    name: Annotated[str, about("Name of the component: `encoder/mrna`, `classifier/mrna+image`.")]
    every: Annotated[
        U32,
        Range(0, 1000000, "rounds"),
        about(
            "It is trained and summed in rounds 1, 1 + every, 1 + 2·every, … and held fixed in the others, at every "
            "institution. 0: frozen, it stays as it began."
        ),
    ] = 1
    fraction: Annotated[
        Number,
        Range(0, 1, above=True),
        about(
            "Part of its parameters that is summed in a round: a public pseudo-random choice, another in every round. "
            "What an institution learnt of the others is dropped. Components that stay at an institution keep all."
        ),
    ] = 1.0

    step: Annotated[
        Number, Range(0, 100), about("Its step size in parts of η, the same at every institution, before DGB's factor.")
    ] = 1.0

    def due(self, round_: int) -> bool:
        """Whether it is trained and summed in a round, counted from 1."""
        return self.every > 0 and (round_ - 1) % self.every == 0


class Model(PlanTable):
    """Shape of the model, beside the encoders' own layers."""

    encoding_width: Annotated[U32, Range(1, 4096), about("Width of every encoding.")] = 16
    classifier_hidden: Annotated[
        tuple[U32, ...], Range(1, 131072), about("Widths of the hidden layers of every classifier.")
    ] = (16,)
    dropout: Annotated[Number, Range(0, 0.9), about("Part of the activations dropped in training.")] = 0.2
    activation: Annotated[Literal["relu", "gelu", "tanh"], about("Between the layers.")] = "relu"
    heads: Annotated[
        bool, about("Each institution trains a head per modality on the detached encoding (METHOD.md).")
    ] = True


class SecureSumSettings(PlanTable):
    """How sums are kept shut (DESIGN.md, "Secure sum")."""

    backend: Annotated[
        Literal["masks", "none"], about("`none` sends plain vectors: only for the bench on public data.")
    ] = "masks"
    threshold: Annotated[
        U32,
        Range(1, 1000, "institutions"),
        about(
            "t: signatures that decide a survivor list and, where the mask graph is complete, shares that open a "
            "secret. 2t ≥ n + max_colluders + 1 and t ≤ n; n - t institutions may drop out."
        ),
    ]
    max_colluders: Annotated[
        U32, Range(0, 49, "institutions"), about("Institutions that may collude with the coordinator.")
    ] = 1
    k_min: Annotated[
        U32,
        Range(1, 1000, "institutions"),
        about(
            "Fewest survivors of a sum that may be opened; at least max_colluders + 2. "
            "1, with max_colluders 0, is for science on public data only."
        ),
    ] = 3
    clip: Annotated[Number, Range(0, 1e6, above=True), about("Updates are clipped to [-clip, clip] per parameter.")] = (
        1.0
    )
    headroom: Annotated[
        Number, Range(1, 1e6), about("At least the largest possible sum of the weights α, which is 1.")
    ] = 1.0
    similar_cohorts: Annotated[
        Literal["log", "withhold"],
        about(
            "A cohort that differs from a recent one by 1 to max_colluders + 1 members: "
            "signed and logged, or not signed. `withhold` holds for statistics too."
        ),
    ] = "log"
    half_words: Annotated[
        bool,
        about(
            "16 bits a parameter on the wire instead of 32: half the bytes. What is summed is rounded at random, "
            "without bias, to a multiple of about clip / 2^15, so set `clip` to the range that updates really have."
        ),
    ] = False
    similar_statistics: Annotated[
        Literal["log", "wait", "withhold"],
        about(
            "The same for losses and metrics, whose differences tell most. `wait`: not signed before the cohort has "
            "come `similar_wait` rounds in a row; the last losses stand meanwhile. Under differential privacy: `log`."
        ),
    ] = "wait"
    similar_wait: Annotated[
        U32, Range(1, 1000, "rounds"), about("Of `wait`, at first; each change of the cohort doubles it for the next.")
    ] = 3
    ckks: Annotated[
        tuple[Literal["holders", "counts", "means", "squares", "weights", "updates", "statistics"], ...],
        about(
            "Sums that are encrypted (CKKS) instead: 7.6 times the bytes of a 32-bit word, and no recovery phase. "
            "Of round 0: holders, counts, means, squares, weights; of every round: updates, statistics. "
            "Needs coordinator_colludes = false, and allow_ckks in every institution's policy."
        ),
    ] = ()
    ckks_max_bytes: Annotated[
        U32,
        Range(61952, 31000000, "bytes"),
        about("Most ciphertext bytes of all vectors of one encrypted sum; a plan with a larger one is refused."),
    ] = 4194304
    coordinator_colludes: Annotated[
        bool,
        about(
            "Whether the coordinator may collude with institutions. Masks stand up to max_colluders of them; "
            "`ckks` stands none, so it must say false."
        ),
    ] = True
    complete_graph_up_to: Annotated[
        U32,
        Range(5, 100, "institutions"),
        about(
            "Up to so many institutions everybody masks with everybody and holds everybody's shares. A larger roster "
            "is given a graph that is drawn for each attempt, in which each has only a few neighbours; in it, a "
            "component with at most so many owners is still masked among all of them. How many neighbours follows "
            "from the roster, max_colluders and the next two; `consilium plan check` shows it."
        ),
    ] = 100
    graph_dropout: Annotated[
        Number,
        Range(0.05, 0.5),
        about(
            "Part of the institutions that may vanish from an attempt whose graph is drawn. If more do, sums may stay "
            "shut and the round be lost; nothing opens that should not."
        ),
    ] = 1 / 3
    graph_failure_bits: Annotated[
        U32,
        Range(10, 80, "bits"),
        about(
            "σ: with that part gone, a drawn graph fails an attempt with probability at most 2^-σ. Says how rarely a "
            "round is lost, not how private it is: institutions check who is tied to whom before they sign."
        ),
    ] = 40


class Training(PlanTable):
    """Local training at an institution."""

    local_steps: Annotated[U32, Range(1, 100000, "batches"), about("K: batches in a round.")] = 10
    batch_size: Annotated[U32, Range(1, 65536, "patients"), about("Patients in a batch.")] = 16
    optimiser: Annotated[Literal["sgd", "momentum", "adam"], about("Local optimiser, re-created every round.")] = "adam"
    learning_rate: Annotated[Number, Range(0, 100, above=True), about("η, before DGB's factors.")] = 1e-3
    momentum: Annotated[Number, Range(0, 0.9999), about("Of `momentum`.")] = 0.9
    weight_decay: Annotated[Number, Range(0, 10), about("Decoupled: part of a weight taken off, times η.")] = 0.0
    gradient_clip: Annotated[Number, Range(0, 1e6), about("Largest L2 norm of a batch gradient; 0: no clipping.")] = 0.0
    proximal: Annotated[Number, Range(0, 1000), about("FedProx μ; 0: off.")] = 0.0
    class_weights: Annotated[
        Literal["none", "balanced"], about("`balanced`: inverse frequency at the institution.")
    ] = "balanced"
    schedule: Annotated[Literal["constant", "cosine", "step"], about("How η changes over the rounds.")] = "constant"
    schedule_period: Annotated[U32, Range(1, 1000000, "rounds"), about("Rounds between drops of `step`.")] = 20
    schedule_factor: Annotated[Number, Range(0, 1, above=True), about("Factor of one drop of `step`.")] = 0.5
    validation_fraction: Annotated[
        Number,
        Range(0.01, 0.9),
        about("Part of an institution's patients kept for validation, stratified by class."),
    ] = 0.2
    count_noise: Annotated[
        Number,
        Range(0, 10000, "patients"),
        about("Scale of the discrete Laplace noise on n_i, drawn once per run; 0: none."),
    ] = 5.0
    head_gradient: Annotated[
        Number,
        Range(0, 100),
        about(
            "Weight of a head's loss in its encoder's gradient, beside the classifier's 1; 0: heads read the detached "
            "encoding and teach the encoder nothing."
        ),
    ] = 0.0


class ServerOptimiser(PlanTable):
    """What turns an opened sum into the next model, the same at the coordinator and every institution."""

    kind: Annotated[
        Literal["fedavg", "fedavgm", "fedadam", "fedyogi"], about("Server optimiser (Reddi et al. 2021).")
    ] = "fedavg"
    learning_rate: Annotated[Number, Range(0, 100, above=True), about("Server step size.")] = 1.0
    momentum: Annotated[Number, Range(0, 0.9999), about("Of `fedavgm`.")] = 0.9
    beta1: Annotated[Number, Range(0, 0.9999), about("Of `fedadam` and `fedyogi`.")] = 0.9
    beta2: Annotated[Number, Range(0, 0.99999), about("Of `fedadam` and `fedyogi`.")] = 0.99
    tau: Annotated[
        Number, Range(0, 1, above=True), about("Adaptivity of `fedadam` and `fedyogi`, added to the root.")
    ] = 1e-3


class Blending(PlanTable):
    """DGB, distributed gradient blending (METHOD.md)."""

    kind: Annotated[
        Literal["dgb", "local", "off"],
        about("`local`: hierarchical, inside each institution alone; `off`: plain steps."),
    ] = "dgb"
    kappa: Annotated[Literal["one", "subsets"], about("κ = 1, or κ = |S_i|, which keeps the mean step at η.")] = "one"
    smoothing: Annotated[Number, Range(0, 0.999), about("β: weight of the past; 0: none.")] = 0.5
    window: Annotated[U32, Range(1, 1000, "rounds"), about("Rounds that G and O are smoothed over; 1: none.")] = 3
    clamp: Annotated[bool, about("Whether κv is kept in [v_min, v_max].")] = True
    v_min: Annotated[Number, Range(0, 100), about("Smallest κv.")] = 0.2
    v_max: Annotated[Number, Range(0, 100, above=True), about("Largest κv; at least v_min.")] = 3.0
    epsilon: Annotated[Number, Range(0, 100), about("ε: times the median of O², in the score's divisor.")] = 0.01
    epsilon_0: Annotated[
        Number, Range(0, 1, above=True), about("ε_0: added to the divisor, so that it is never zero.")
    ] = 1e-6
    generalisation: Annotated[
        Literal["fall", "absolute"], about("G: the fall of the validation loss, or |G| of the paper.")
    ] = "fall"
    overfitting: Annotated[
        Literal["delta-sums", "weighted-means"],
        about("O from sums of differences, or from differences of weighted means as in the paper."),
    ] = "delta-sums"
    losses_from: Annotated[
        Literal["holders", "combination"],
        about("Whose losses count for a subset: all who can evaluate it, or only whose combination it is."),
    ] = "holders"
    encoder_times_combination: Annotated[
        bool, about("An encoder's step is also scaled by its institution's combination's weight.")
    ] = False
    horizon: Annotated[
        U32,
        Range(0, 1000, "rounds"),
        about("O and G are the changes over so many rounds, added up; 1: of one round; 0: of all since the run began."),
    ] = 1
    among: Annotated[
        Literal["subsets", "modalities"],
        about(
            "What v is divided among. `subsets`: an institution's modalities and its combination, by its own S_i. "
            "`modalities`: the plan's modalities, so that an encoder has the same factor at every institution that "
            "holds it, alone or not; classifiers step by η."
        ),
    ] = "subsets"


class Proximity(PlanTable):
    """PCW, proximity-aware client weighting (METHOD.md)."""

    kind: Annotated[
        Literal["cosine", "inner", "size"],
        about(
            "`size`: PCW off, weights by patients. `inner`, the paper's, only with a coordinator that does not lie: by "
            "an invented sum it could have the losses of one institution alone, whose modalities are nobody else's."
        ),
    ] = "cosine"
    floor: Annotated[Number, Range(0, 1), about("p_floor: smallest p_i of `cosine`.")] = 0.05
    bound: Annotated[Number, Range(0, 1e6, above=True), about("Largest p_i of `inner`.")] = 10.0
    loss_max: Annotated[
        Number, Range(0, 1000, "nats", above=True), about("L_max: per-patient losses are clipped here.")
    ] = 5.0


class FeatureFloors(PlanTable):
    """When the federated feature schema may use a column."""

    min_institutions: Annotated[
        U32, Range(1, 1000, "institutions"), about("Fewest institutions with a value; at least k_min.")
    ] = 3
    min_patients: Annotated[
        U32, Range(1, 1000000000, "patients"), about("Fewest patients with a value, over all institutions.")
    ] = 30
    rare_category: Annotated[
        U32, Range(0, 1000000, "patients"), about("An institution's own smaller count is sent as zero.")
    ] = 5


class DifferentialPrivacy(PlanTable):
    """Record-level differential privacy (DESIGN.md, "Differential privacy")."""

    enabled: Annotated[bool, about("Whether everything released is noised and charged.")] = False
    delta: Annotated[Number, Range(0, 0.1, above=True), about("δ, for the whole run.")] = 1e-5
    noise_multiplier: Annotated[Number, Range(0, 1000, above=True), about("σ of DP-SGD.")] = 1.0
    max_gradient_norm: Annotated[
        Number,
        Range(0, 1e6, above=True),
        about("Clipping norm of a patient's gradient, all components together."),
    ] = 1.0
    feature_noise: Annotated[
        Number, Range(0, 100000, above=True), about("Noise multiplier of each release of feature statistics.")
    ] = 5.0
    statistics_noise: Annotated[
        Number,
        Range(0, 100000, above=True),
        about("Noise multiplier of each release of the round's statistics."),
    ] = 5.0
    epsilon: Annotated[
        Number,
        Range(0, 1000, above=True),
        about("Most that the plan spends at one institution; local policy may be stricter."),
    ] = 8.0


class Deadlines(PlanTable):
    """How long the coordinator waits for stragglers."""

    keys: Annotated[Number, Range(0, 86400, "seconds", above=True), about("For keys and sealed shares.")] = 30.0
    upload: Annotated[Number, Range(0, 604800, "seconds", above=True), about("For training and the upload.")] = 600.0
    signatures: Annotated[
        Number, Range(0, 86400, "seconds", above=True), about("For signatures of the survivor list.")
    ] = 30.0
    openings: Annotated[Number, Range(0, 86400, "seconds", above=True), about("For shares that open a sum.")] = 30.0
    enrolment: Annotated[
        Number, Range(0, 2592000, "seconds", above=True), about("For institutions to enrol before round 1.")
    ] = 3600.0
