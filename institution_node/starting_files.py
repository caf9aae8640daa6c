"""What `consilium-node init` writes: the two files of a node, to be filled in from top to bottom."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from security.errors import ConfigurationError

NODE_TOML: Final = """\
# This node of a Consilium federation. Paths are relative to this file. After every change: consilium-node check

# Both as in the certificate.
federation = "my-federation"
institution = "my-hospital"

# host:port, as in the coordinator's certificate. The node only calls out; it needs no port open to the outside.
coordinator = "coordinator.example.org:8443"

# What must survive a restart. Belongs in the backup as a whole; never bring an old one back while a run goes on.
state = "state"

[tls]
# Made here by `consilium pki issue`; the key never leaves this machine. The rest comes from the federation's authority.
key = "key.pem"
certificate = "certificate.pem"
authority = "ca.pem"
# revocations = "revoked.txt"

[data]
# One row per patient; .parquet, .csv or .tsv. The label's column is named by the plan.
labels = "data/labels.csv"
id_column = "case_id"
# Where a plan counts subgroups (sex, age): the table with these columns. Left out: the label table.
# subgroups = "data/clinical.csv"

[data.tables]
# modality = "file"; take out what this hospital does not have.
mrna = "data/mrna.parquet"
image = "data/image.parquet"
clinical = "data/clinical.csv"

[compute]
device = "auto"        # "cpu", "cuda" or "auto"
precision = "float32"  # or "mixed": trains in bfloat16 where that is safe; not under differential privacy
threads = 0            # 0: as many as there are cores

[disk]
# The server optimiser's state rests in the state folder: as much again as a large model with FedAvgM, twice as much
# with FedAdam and FedYogi. On a small disk let fewer such vectors rest: the others are fetched in every round.
# optimiser_slots = 1

[metrics]
# For Prometheus. Local figures are computed from patients: loopback or the hospital's own network only.
# local = "127.0.0.1:9464"
# shareable = "127.0.0.1:9465"
# certificate = "metrics.pem"      # with its key: HTTPS
# key = "metrics-key.pem"
# clients = "metrics-clients.pem"  # whose authority's clients may fetch
# token = "metrics-token"          # file with the bearer token that they must show

[logging]
level = "info"
format = "text"  # "json" for a collector
"""

POLICY_TOML: Final = """\
# What this institution permits. It can only tighten what a plan says; nothing runs that is not listed here.

# Digests of the plans that may run, as `consilium plan check` and `consilium-node check` print them.
accepted_plans = []

# No sum over fewer institutions than this is opened.
k_min = 3

# Largest privacy loss ε that this institution's patients may suffer, over all runs. Where it is given, plans without
# differential privacy are refused.
# epsilon_max = 8.0

# Largest δ that such an ε may be stated at; well below one over the number of patients.
# delta_max = 1e-5

# "withhold": do not sign for a cohort that differs from a recent one by one or two institutions.
# similar_cohorts = "withhold"

# true: also plans that count this hospital's validation patients by sex, age group and the like, in secure sums; and
# the fewest of its own patients that may be counted as such a group, at least 5.
# allow_subgroups = true
# subgroup_min_patients = 5

# true: also plans that encrypt sums (CKKS) instead of masking them. One institution that colludes with the coordinator
# then opens every institution's vector, and the two that decrypt could read each. Masks have neither weakness.
# allow_ckks = true

# Packages whose encoders plans may name: their code runs on this institution's patients, so review it first.
# `consilium-node encoders` prints what is installed, with a hash of its files to pin those too.
# allow_encoders = ["example-encoders==0.1.0"]
"""


def write_starting_files(folder: Path) -> tuple[Path, ...]:
    """Writes node.toml and policy.toml, or neither.

    Args:
        folder: made if it is not there, for its owner only.

    Returns:
        The files.

    Raises:
        ConfigurationError: one of them is there already.
        OSError: the disk's.
    """
    files = {folder / "node.toml": NODE_TOML, folder / "policy.toml": POLICY_TOML}
    for path in files:
        if path.exists():
            raise ConfigurationError(
                "this file is there already; nothing was written.",
                remedy="Choose another folder, or move the file away.",
                place=str(path),
            )
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for path, text in files.items():
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            file.write(text)
    return tuple(files)
