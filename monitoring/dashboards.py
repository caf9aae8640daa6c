"""Grafana dashboards: `python -m monitoring.dashboards` writes this table to `monitoring/dashboards/`.

Two bundles: the operator's shows what the coordinator and nodes may show outside a hospital, the hospital's what stays
inside. Every expression uses declared metrics only (a test holds them against `monitoring.metrics`).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from monitoring.grafana import Dashboard, Panel, Query, grafana, hourly, median_by, of, quantiles, stat, traffic

FEDERATION: Final = Dashboard(
    "consilium-federation",
    "Consilium: federation",
    "operator",
    "consilium-coordinator",
    (
        stat("Round", "The round in progress.", of("consilium_current_round")),
        stat("Of", "Rounds that the plan asks for.", of("consilium_planned_rounds")),
        stat("Enrolled", "Institutions admitted to the run.", of("consilium_enrolled_institutions")),
        stat("Required", "Fewest that can open a sum.", of("consilium_required_institutions")),
        stat(
            "Since the last round",
            "Time since a round was committed.",
            f"time() - {of('consilium_last_commit_timestamp_seconds')}",
            "s",
        ),
        stat("Attempts given up", "In the last hour.", f"increase({of('consilium_attempts_burnt_total')}[1h])"),
        Panel(
            "Run",
            "What the run is doing.",
            (Query(f"{of('consilium_run_status')} == 1", "{{status}}"),),
            "none",
            "state-timeline",
        ),
        Panel(
            "Who was in the last round",
            "1: in the last committed round. An institution that stays at 0 is missing.",
            (Query(of("consilium_institution_participating"), "{{institution}}"),),
            "none",
            "state-timeline",
        ),
        Panel(
            "Participants",
            "Survivors of each sum, beside the fewest that can open one.",
            (
                Query(of("consilium_participants"), "{{sum}}"),
                Query(of("consilium_required_institutions"), "required"),
            ),
        ),
        Panel(
            "Dropouts",
            "By the phase that missed them, per hour.",
            (hourly("consilium_dropouts_total", "phase"),),
        ),
        Panel(
            "Time in each phase",
            "Median of the last hour. Training and uploads belong to institutions, folding to the coordinator.",
            (median_by("consilium_phase_duration_seconds", "phase"),),
            "s",
        ),
        Panel(
            "Folding",
            "How long adding and unmasking a sum takes: median and slowest tenth.",
            quantiles("consilium_fold_duration_seconds"),
            "s",
        ),
        Panel(
            "Rounds",
            "Committed rounds per hour.",
            (hourly("consilium_rounds_committed_total"),),
        ),
        Panel(
            "Traffic",
            "Payload from and to institutions.",
            traffic("consilium_"),
            "Bps",
        ),
        Panel(
            "Unmasking",
            "Masked words removed per second in the last sum.",
            (Query(of("consilium_masked_words_per_second"), "words"),),
            "wps",
        ),
        Panel(
            "Refusals",
            "Calls and institutions refused per hour, by error code (docs/errors.md).",
            (hourly("consilium_refusals_total", "reason"),),
        ),
        Panel(
            "Connections",
            "Handshakes begun, and connections let in, per minute. The difference was refused.",
            (
                Query(f"60 * rate({of('consilium_handshakes_total')}[5m])", "begun"),
                Query(f"60 * rate({of('consilium_connections_admitted_total')}[5m])", "let in"),
            ),
        ),
        Panel(
            "Memory and disk",
            "Memory of the coordinator (512 MiB are the limit), and room on its disk.",
            (
                Query(of("consilium_process_rss_anon_bytes"), "memory"),
                Query(of("consilium_free_disk_bytes"), "free disk"),
            ),
            "bytes",
        ),
        Panel(
            "Certificates end",
            "The coordinator's, and nodes' where they show it.",
            (
                Query(f"1000 * {of('consilium_certificate_expiry_timestamp_seconds')}", "coordinator"),
                Query("1000 * consilium_node_certificate_expiry_timestamp_seconds", "{{instance}}"),
            ),
            "dateTimeFromNow",
            "stat",
        ),
        Panel(
            "Waits for room",
            "1 while an attempt waits for room on the disk.",
            (Query(of("consilium_waiting_for_room"), "waits"),),
            "none",
            "state-timeline",
        ),
    ),
)

LEARNING: Final = Dashboard(
    "consilium-learning",
    "Consilium: learning",
    "operator",
    "consilium-coordinator",
    (
        Panel(
            "Training loss",
            "By subset. One modality's flat while another's falls: it is stuck.",
            (Query(of("consilium_loss", part="training"), "{{subset}}"),),
        ),
        Panel(
            "Validation loss",
            "By subset. Rising while training falls: overfitting.",
            (Query(of("consilium_loss", part="validation"), "{{subset}}"),),
        ),
        Panel(
            "Balanced accuracy",
            "Of validation patients, by combination.",
            (Query(of("consilium_balanced_accuracy"), "{{combination}}"),),
            "percentunit",
            most=1.0,
        ),
        Panel(
            "AUROC",
            "Of validation patients, by combination.",
            (Query(of("consilium_auroc"), "{{combination}}"),),
            "percentunit",
            most=1.0,
        ),
        Panel(
            "Accuracy",
            "A constant guess can look good here: read it beside balanced accuracy.",
            (Query(of("consilium_accuracy"), "{{combination}}"),),
            "percentunit",
            most=1.0,
        ),
        Panel(
            "Macro F1",
            "Of validation patients, by combination.",
            (Query(of("consilium_macro_f1"), "{{combination}}"),),
            "percentunit",
            most=1.0,
        ),
        Panel(
            "Calibration error",
            "Expected calibration error; 0 is best.",
            (Query(of("consilium_calibration_error"), "{{combination}}"),),
            "percentunit",
        ),
        Panel(
            "Blending weights",
            "Share of the blending scores: what DGB thinks worth a large step.",
            (Query(of("consilium_blending_weight"), "{{subset}}"),),
            "percentunit",
            most=1.0,
        ),
        Panel(
            "Blending scores",
            "Generalisation over squared overfitting, smoothed.",
            (Query(of("consilium_blending_score"), "{{subset}}"),),
        ),
        Panel("DOGR", "Overfitting-to-generalisation ratio.", (Query(of("consilium_dogr"), "{{subset}}"),)),
        Panel(
            "Proximity",
            "Mean agreement of local with global trajectories.",
            (Query(of("consilium_mean_proximity"), "{{subset}}"),),
        ),
        Panel(
            "Size of updates",
            "L2 norm of each component's mean trajectory. A rare combination's that jumps about: see the runbook.",
            (Query(of("consilium_update_norm"), "{{component}}"),),
        ),
        Panel(
            "Subgroups",
            "Balanced accuracy by subgroup, validation, when last counted. Empty where the plan counts none.",
            (Query(of("consilium_subgroup_balanced_accuracy"), "{{subgroup}}"),),
            "percentunit",
            most=1.0,
        ),
        Panel(
            "AUROC of subgroups",
            "Of validation patients, when last counted.",
            (Query(of("consilium_subgroup_auroc"), "{{subgroup}}"),),
            "percentunit",
            most=1.0,
        ),
        Panel(
            "Best round is chosen by",
            "metric; loss or last while the metric stays shut.",
            (Query(f"{of('consilium_chosen_by')} == 1", "{{criterion}}"),),
            "none",
            "state-timeline",
            24,
        ),
    ),
)

PRIVACY: Final = Dashboard(
    "consilium-privacy",
    "Consilium: privacy",
    "hospital",
    "consilium-node",
    (
        stat("ε spent", "Privacy loss so far, over all runs.", of("consilium_node_epsilon_spent"), width=6),
        stat(
            "ε that policy allows",
            "The node takes part in nothing that would exceed it.",
            of("consilium_node_epsilon_limit"),
            width=6,
        ),
        Panel(
            "Share spent",
            "Of what policy allows.",
            (Query(f"{of('consilium_node_epsilon_spent')} / {of('consilium_node_epsilon_limit')}"),),
            "percentunit",
            "gauge",
            6,
            1.0,
        ),
        stat(
            "ε left",
            "Before the node refuses.",
            f"{of('consilium_node_epsilon_limit')} - {of('consilium_node_epsilon_spent')}",
            width=6,
        ),
        Panel(
            "ε over time",
            "Spent, and the limit.",
            (Query(of("consilium_node_epsilon_spent"), "spent"), Query(of("consilium_node_epsilon_limit"), "limit")),
        ),
        Panel(
            "Refused",
            "What the node refused to sign, open or do, per hour, by error code.",
            (hourly("consilium_node_refusals_total", "reason"),),
        ),
        Panel(
            "Similar cohorts",
            "Lists signed whose cohort differs from a recent one by few members, per hour.",
            (hourly("consilium_node_similar_cohorts_signed_total"),),
        ),
        Panel(
            "Values clipped",
            "Before masking, per hour and component.",
            (hourly("consilium_node_clipped_values_total", "component"),),
        ),
    ),
)

NODE: Final = Dashboard(
    "consilium-node",
    "Consilium: node",
    "hospital",
    "consilium-node",
    (
        stat("Runs", "1 while the node's loop runs.", of("consilium_node_up")),
        stat("Round", "That the node takes part in.", of("consilium_node_current_round")),
        stat(
            "Coordinator answered",
            "Time since.",
            f"time() - {of('consilium_node_last_contact_timestamp_seconds')}",
            "s",
        ),
        stat(
            "Certificate ends",
            "Renew it before.",
            f"1000 * {of('consilium_node_certificate_expiry_timestamp_seconds')}",
            "dateTimeFromNow",
        ),
        stat("Memory", "Of the process.", of("consilium_node_process_rss_anon_bytes"), "bytes"),
        stat("Room on disk", "Of the state folder.", of("consilium_node_free_disk_bytes"), "bytes"),
        Panel(
            "Phase",
            "What the node does.",
            (Query(f"{of('consilium_node_phase')} == 1", "{{phase}}"),),
            "none",
            "state-timeline",
        ),
        Panel(
            "Local training",
            "How long the local steps of a round take: median and slowest tenth.",
            quantiles("consilium_node_training_duration_seconds"),
            "s",
        ),
        Panel(
            "Own training loss",
            "Of the hospital's own patients.",
            (Query(of("consilium_node_loss", part="training"), "{{subset}}"),),
        ),
        Panel(
            "Own validation loss",
            "Of the hospital's own patients.",
            (Query(of("consilium_node_loss", part="validation"), "{{subset}}"),),
        ),
        Panel(
            "Proximity",
            "Of the local to the global trajectory.",
            (Query(of("consilium_node_proximity"), "{{subset}}"),),
        ),
        Panel(
            "Blending weights here",
            "What scales the steps at this hospital.",
            (Query(of("consilium_node_blending_weight"), "{{subset}}"),),
        ),
        Panel(
            "Size of updates",
            "L2 norm of the last update.",
            (Query(of("consilium_node_update_norm"), "{{component}}"),),
        ),
        Panel(
            "Weight in the sums",
            "Of this hospital's updates.",
            (Query(of("consilium_node_aggregation_weight"), "{{component}}"),),
        ),
        Panel(
            "Traffic",
            "Payload from and to the coordinator.",
            traffic("consilium_node_"),
            "Bps",
        ),
        Panel(
            "Masking",
            "Words masked per second in the last upload.",
            (Query(of("consilium_node_masked_words_per_second"), "words"),),
            "wps",
        ),
        Panel(
            "GPU memory",
            "That training holds; 0 without a GPU.",
            (Query(of("consilium_node_gpu_memory_bytes"), "held"),),
            "bytes",
        ),
        Panel(
            "Phases entered",
            "Per hour: a node that takes part enters many.",
            (hourly("consilium_node_phases_entered_total", "phase"),),
        ),
    ),
)

DASHBOARDS: Final = (FEDERATION, LEARNING, PRIVACY, NODE)


def files() -> dict[Path, str]:
    """Every dashboard's file, relative to this package, and what is in it."""
    return {
        Path("dashboards") / d.bundle / f"{d.uid}.json": json.dumps(grafana(d), indent=1, ensure_ascii=False) + "\n"
        for d in DASHBOARDS
    }


def main() -> None:
    """Writes them."""
    for path, text in files().items():
        target = Path(__file__).parent / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
