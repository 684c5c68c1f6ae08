"""The survey as data: the packaged files are complete, sourced and as published; queries and errors read well."""

from __future__ import annotations

import dataclasses
import json
import pickle
import subprocess
import sys
from enum import StrEnum
from math import prod
from typing import Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from apnb import taxonomy
from apnb.errors import Invalid
from apnb.paths import data_path

# Typed from the taxonomy tables in the README of the survey's repository, in its abbreviations: stages, schedule, structure,
# locality, criterion. Its table of pruning during training has no schedule: n.s. here.
README_TABLES = {
    "after": """
        RADMM       | AT       | AT      | 1S     | S, US | L | SOLWM
        HYDRA       | AT       | AT      | 1S     | US    | L | LIS
        Heracles    | AT       | AT      | 1S     | S, US | G | LIS
        HARP        | AT       | AT      | 1S     | S, US | G | LIS
        PwoA        | AT       | KD      | 1S     | US    | L | SOLWM
        MAD         | AT       | AT      | 1S     | US    | G | LIS
        Sehwag19    | AT       | AT      | IT     | S, US | L | LWM
        RSR         | AT + CNI | n.s.    | 1S     | US    | G | RELWM
        BNAP        | AT       | AT      | 1S, IT | S, US | G | LIS
        RFP         | AT       | AT      | 1S     | S     | L | HGM
        Deadwooding | n.s.     | KD + AT | 1S     | US    | G | SOLWM
        FRE         | AT       | AT      | IT     | S     | G | LIS
        Luo23       | AT       | AT      | 1S     | S     | L | LIS
        SR-GKP      | NT       | NT      | 1S     | S     | L | LIS
        FSRP        | AT       | AT      | 1S     | S     | L | LIS""",
    "before": """
        Cosentino19 | AT | AT   | IT   | US | G    | LWM
        Li20        | AT | AT   | 1S   | US | G    | LWM
        Wang20      | AT | AT   | IT   | US | G    | LWM
        RST         | AT | None | 1S   | US | L    | LIS
        RobustBird  | AT | AT   | IT   | US | G    | LWM
        AWT         | AT | AT   | n.s. | US | n.s. | LWM""",
    "during": """
        TwinRep    | AT | n.s. | S, US | G    | RELWM
        BCS-P      | AT | n.s. | US    | L, G | BCS
        DNR        | AT | n.s. | S, US | G    | SOLWM
        InTrain    | AT | n.s. | S, US | G    | LIS
        FlyingBird | AT | n.s. | US    | G    | LWM""",
}
ADVERSARIAL = {"pgd_at", "trades", "fgsm", "fast_at", "robust_dataset"}  # what the README's AT turns out to be
ABBREVIATED = {"AT": ADVERSARIAL, "NT": {"natural"}, "KD": {"kd"}, "CNI": {"cni"}, "n.s.": {"unspecified"}, "None": {"none"}}
SCHEDULES = {"1S": "one_shot", "IT": "iterative", "1S, IT": "both", "n.s.": "unspecified"}
PLACES = {"L": "local", "G": "global", "n.s.": "unspecified"}

# Typed from the leaderboard tables of the same README: ResNet18 at three sparsities, then VGG16; clean/robust, * where bold.
LEADERBOARD = {
    ("cifar10", "unstructured"): {
        "radmm": "80.54/43.68 79.33/42.56* 71.17/37.21 74.76/39.92 72.67/38.44 57.69/31.30",
        "hydra": "76.74/43.34 76.16/42.45 72.21/38.80* 78.31/43.81* 76.58/42.61* 70.59/35.56",
        "harp": "83.38/45.40* 83.38/45.69* 83.11/45.50* 80.70/42.83* 80.26/41.21* 79.42/42.02*",
        "rst": "60.92/14.31 56.93/16.76 48.90/15.16 75.81/26.99 71.45/23.94 64.16/14.80",
        "flyingbird": "80.69/46.49* 77.42/46.10* 75.40/42.02* 76.72/43.95* 75.22/44.47* 72.49/40.49*",
    },
    ("cifar10", "structured"): {
        "pwoa": "83.44/44.79 81.77/37.85 76.41/28.56 66.33/30.15 63.36/24.91 57.71/18.39",
        "twinrep": "79.90/45.58* 79.37/45.21* 78.41/44.30* 77.65/43.13* 77.58/42.77* 76.26/42.14*",
    },
    ("svhn", "unstructured"): {
        "radmm": "- - - 62.25/44.40 52.24/42.99 64.91/37.91",
        "mad": "- - - 89.42/37.46 86.40/24.90 -",
        "li20": "89.95/43.62 55.04/19.98 36.71/13.09 53.69/26.31 48.24/20.39 45.88/14.56",
        "robustbird": "91.00/46.23* 90.18/47.26* 86.12/42.62* 89.04/42.81 88.24/41.64 -",
    },
    ("svhn", "structured"): {
        "radmm": "- - - - - -",
        "harp": "91.72/45.82* 92.07/46.80* 91.03/45.25* 91.53/44.10 89.06/42.45 87.89/39.25",
        "twinrep": "90.71/37.33 88.71/45.28 85.44/45.10 89.91/45.82* 87.10/43.26* 89.61/44.83*",
    },
}
SPARSITIES = {"unstructured": (0.9, 0.95, 0.99), "structured": (0.5, 0.75, 0.9)}

Strict = ConfigDict(extra="forbid", strict=True)
Text = Field(min_length=1)


class SourceFile(BaseModel):
    model_config = Strict
    what: str = Text
    where: str | None


class ReadingFile(BaseModel):
    model_config = Strict
    field: str = Text
    scope: Literal["within_survey", "survey_against_code", "survey_against_paper"]
    readings: dict[str, str] = Field(min_length=2)
    chosen: str | list[str] = Text
    reason: str = Field(min_length=20)


class MethodFile(BaseModel):
    model_config = Strict
    key: str = Field(pattern="^[a-z][a-z0-9]*$")
    name: str = Text
    survey_key: str = Field(pattern=r"^[A-Za-z0-9]+_[A-Za-z]+\d{4}[A-Za-z]+$")
    title: str = Text
    first_author: str = Text
    year: int = Field(ge=2019, le=2023)
    venue: str = Text
    bibliography: Literal["confirmed", "recalled", "unknown"]
    paper: str = Field(pattern="^https://")
    code: str | None = Field(pattern="^https://github.com/")
    pipeline: Literal["after", "before", "during"]
    objectives: dict[str, list[str]]
    schedule: Literal["one_shot", "iterative", "both", "unspecified"]
    structures: list[Literal["weights", "filters", "channels", "kernels"]] = Field(min_length=1)
    benchmarked: list[Literal["unstructured", "structured"]]
    locality: list[Literal["local", "global", "unspecified"]] = Field(min_length=1)
    criterion: Literal["lwm", "relwm", "solwm", "lis", "hgm", "bcs"]
    sources: dict[str, dict[str, str]]
    readings: list[ReadingFile]
    note: str | None = None


class TaxonomyFile(BaseModel):
    model_config = Strict
    schema_: Literal[1] = Field(alias="schema")
    sources: dict[str, SourceFile]
    methods: list[MethodFile] = Field(min_length=26, max_length=26)


class LeaderboardRow(BaseModel):
    model_config = ConfigDict(extra="forbid")
    data: Literal["cifar10", "svhn"]
    structure_group: Literal["unstructured", "structured"]
    network: Literal["resnet18", "vgg16"]
    sparsity: Literal[0.5, 0.75, 0.9, 0.95, 0.99]
    method: str = Text
    clean: float = Field(gt=10, lt=100)
    robust: float = Field(gt=10, lt=100)
    bold: bool
    checkpoint_key: str = Field(pattern=r"^[A-Za-z0-9]+_[A-Za-z]+\d{4}[A-Za-z]+_(R18|V16)_(CIFAR10|SVHN)_(US|S)_\d\d$")
    checkpoint_id: str = Field(pattern=r"^([\w-]{33})?$")
    checkpoint_extension: Literal["", ".pt", ".pth", ".pth.tar", ".tar", ".t7"]
    distances_key: str
    distances_id: str = Field(pattern=r"^([\w-]{33})?$")
    note: str


@pytest.fixture(scope="module")
def document() -> dict:
    return json.loads(data_path("taxonomy.json").read_text("utf-8"))


@pytest.fixture
def entry() -> dict:
    """A small valid entry as a person would write it."""
    return {
        "key": "mine",
        "name": "Mine",
        "title": "A new method",
        "first_author": "Doe",
        "year": 2025,
        "pipeline": "after",
        "objectives": {"pretraining": ["natural"], "finetuning": ["pgd_at"]},
        "schedule": "one_shot",
        "structures": ["weights"],
        "locality": ["global"],
        "criterion": "lwm",
    }


# The packaged files


def test_taxonomy_json_follows_its_schema(document):
    TaxonomyFile.model_validate(document)


def test_there_are_26_methods_in_three_pipelines():
    assert [len(taxonomy.methods(p)) for p in ("after", "before", "during")] == [15, 6, 5]
    assert len({m.key for m in taxonomy.methods()}) == len({m.survey_key for m in taxonomy.methods()}) == 26


@pytest.mark.parametrize("pipeline", README_TABLES)
def test_methods_are_as_the_readme_prints_them(pipeline):
    """Except PwoA's benchmark and finer words for AT, which the readings explain, every cell is the README's."""
    lines = [[cell.strip() for cell in line.split("|")] for line in README_TABLES[pipeline].strip().splitlines()]
    assert [m.name for m in taxonomy.methods(pipeline)] == [line[0] for line in lines]
    for m, (_, *stages, schedule, structure, locality, criterion) in zip(taxonomy.methods(pipeline), lines, strict=True):
        assert list(m.objectives) == list(taxonomy.STAGES[m.pipeline])
        for words, printed in zip(m.objectives.values(), stages, strict=True):
            expected = [ABBREVIATED[word] for word in printed.split(" + ")]
            assert len(words) == len(expected) and all(w in e for w, e in zip(words, expected, strict=True)), m.key
        assert m.schedule == SCHEDULES[schedule], m.key
        assert ("weights" in m.structures, bool(set(m.structures) - {"weights"})) == ("US" in structure, structure[0] == "S"), (
            m.key
        )
        assert set(m.locality) == {PLACES[place] for place in locality.split(", ")}, m.key
        assert m.criterion == criterion.lower(), m.key


@pytest.mark.parametrize(
    ("key", "stage", "objective"),
    [
        ("radmm", "pretraining", "pgd_at"),
        ("hydra", "finetuning", "trades"),
        ("harp", "pretraining", "trades"),
        ("pwoa", "pretraining", "trades"),
        ("mad", "finetuning", "pgd_at"),
        ("rfp", "finetuning", "robust_dataset"),
        ("deadwooding", "finetuning", "fgsm"),
        ("fre", "pretraining", "trades"),
        ("li20", "pruning_step", "fgsm"),
        ("li20", "training_step", "pgd_at"),
        ("twinrep", "training_step", "pgd_at"),
        ("intrain", "training_step", "fast_at"),
    ],
)
def test_finer_objectives_are_as_in_the_entry_forms(key, stage, objective):
    assert objective in taxonomy.method(key).objectives[stage]


@pytest.mark.parametrize(
    ("key", "structure"),
    [
        *((key, "filters") for key in ("radmm", "sehwag19", "bnap", "rfp", "fre", "luo23", "fsrp")),
        *((key, "channels") for key in ("heracles", "harp", "twinrep", "dnr", "intrain")),
        ("srgkp", "kernels"),
    ],
)
def test_structures_are_as_in_the_entry_forms(key, structure):
    assert structure in taxonomy.method(key).structures


def test_every_fact_has_a_source_that_is_explained(document):
    explained = set(document["sources"])
    for m in taxonomy.methods():
        facts = {"name", "survey_key", "bibliography", "paper", "code", "pipeline", *m.objectives, "schedule", "structures"}
        assert set(m.sources) == facts | {"benchmarked", "locality", "criterion"}, m.key
        for said in (*m.sources.values(), *(r.readings for r in m.readings)):
            assert said and set(said) <= explained and all(text.strip() for text in said.values()), m.key
        assert ("recalled" in m.sources["bibliography"]) == (m.bibliography == "recalled"), m.key
    assert set(taxonomy.sources()) == explained
    assert "2409.01249" in taxonomy.sources()["survey"] and "0ae46e7" in taxonomy.sources()["readme"]


def test_every_disagreement_keeps_both_readings_a_choice_and_a_reason():
    readings = [r for m in taxonomy.methods() for r in m.readings]
    assert len(readings) == 51
    for r in readings:
        assert len(set(r.readings.values())) >= 2 and r.chosen and len(r.reason) > 20
    assert {r.scope for r in readings} == set(taxonomy.Scope)


def test_within_the_survey_an_entry_follows_what_was_chosen():
    for m in taxonomy.methods():
        for r in m.readings:
            if r.scope is taxonomy.Scope.within_survey and r.field != "checkpoints":
                value = m.objectives[r.field] if r.field in m.objectives else getattr(m, r.field)
                assert (value if isinstance(value, tuple) else str(value)) == r.chosen, (m.key, r.field)


def test_what_is_chosen_is_in_the_vocabulary():
    words = {"structures": taxonomy.Structure, "locality": taxonomy.Locality, "criterion": taxonomy.Criterion}
    words |= {"schedule": taxonomy.Schedule, "pipeline": taxonomy.Pipeline} | dict.fromkeys(
        taxonomy.STAGE_NAMES, taxonomy.Objective
    )
    for m in taxonomy.methods():
        for r in m.readings:
            for word in (r.chosen,) if isinstance(r.chosen, str) else r.chosen:
                assert r.field not in words or word in list(words[r.field]), (m.key, r.field)


def test_where_the_code_differs_a_preset_may_depart_from_the_survey():
    chosen = {(m.key, r.field): r.chosen for m in taxonomy.methods() for r in m.readings if r.scope == "survey_against_code"}
    assert chosen["robustbird", "schedule"] == "one_shot" and taxonomy.method("robustbird").schedule == "iterative"
    assert chosen["flyingbird", "locality"] == ("local",) and taxonomy.method("flyingbird").locality == ("global",)


# The leaderboard


def test_leaderboard_rows_follow_their_schema():
    rows = taxonomy.leaderboard().to_dict("records")
    TypeAdapter(list[LeaderboardRow]).validate_python(rows)
    assert len(rows) == 154


def test_leaderboard_tables_have_as_many_cells_as_published():
    counts = taxonomy.leaderboard().groupby(["data", "structure_group"]).size().to_dict()
    assert counts == {
        ("cifar10", "unstructured"): 60,
        ("cifar10", "structured"): 24,
        ("svhn", "unstructured"): 52,
        ("svhn", "structured"): 18,
    }


@pytest.mark.parametrize("table", LEADERBOARD, ids="-".join)
def test_leaderboard_numbers_are_as_published(table):
    group = table[1]
    board = (
        taxonomy.leaderboard().set_index(["data", "structure_group"]).loc[[table]].set_index(["method", "network", "sparsity"])
    )
    for key, printed in LEADERBOARD[table].items():
        columns = [(network, sparsity) for network in ("resnet18", "vgg16") for sparsity in SPARSITIES[group]]
        for (network, sparsity), cell in zip(columns, printed.split(), strict=True):
            if cell == "-":
                assert (key, network, sparsity) not in board.index
            else:
                row = board.loc[(key, network, sparsity)]
                clean, robust = map(float, cell.rstrip("*").split("/"))
                assert (row["clean"], row["robust"], row["bold"]) == (clean, robust, cell.endswith("*"))


def test_robust_accuracy_is_never_above_clean_accuracy():
    board = taxonomy.leaderboard()
    assert (board["robust"] <= board["clean"]).all()


def test_leaderboard_and_taxonomy_name_the_same_methods():
    board = taxonomy.leaderboard()
    for m in taxonomy.methods():
        assert set(board.loc[board["method"] == m.key, "structure_group"]) == set(m.benchmarked), m.key
    assert set(board["method"]) == {m.key for m in taxonomy.methods(benchmarked=True)}
    assert len(set(board["method"])) == 10


def test_checkpoint_keys_spell_out_their_row():
    short = {"resnet18": "R18", "vgg16": "V16", "cifar10": "CIFAR10", "svhn": "SVHN", "unstructured": "US", "structured": "S"}
    for row in taxonomy.leaderboard().to_dict("records"):
        parts = (short[row[c]] for c in ("network", "data", "structure_group"))
        assert row["checkpoint_key"] == "_".join(
            [taxonomy.method(row["method"]).survey_key, *parts, f"{row['sparsity'] * 100:.0f}"]
        )


def test_84_checkpoints_are_listed_under_83_keys():
    board = taxonomy.leaderboard()
    listed = board[board["checkpoint_id"] != ""]
    assert len(listed) == listed["checkpoint_id"].nunique() == listed["checkpoint_key"].nunique() == 83
    assert set(listed["data"]) == {"cifar10"}
    assert ((board["checkpoint_extension"] != "") == (board["checkpoint_id"] != "")).all()
    [twice] = listed.loc[listed["note"].str.contains("listed twice")].to_dict("records")
    assert twice["checkpoint_key"] == "HYDRA_Sehwag2020Hydra_R18_CIFAR10_US_90"
    assert twice["checkpoint_id"] == "1uHEhTIZdE4bzRY8HWw4SoQX5RhyCZgtP"
    assert "1VU99dNBhP2b1QeiPkT88f0RXmTzFKIOA" in twice["note"]  # the 84th


def test_48_files_of_distances_are_listed():
    board = taxonomy.leaderboard()
    listed = board[board["distances_id"] != ""]
    assert len(listed) == listed["distances_id"].nunique() == listed["distances_key"].nunique() == 48
    assert set(listed["method"]) == {"radmm", "hydra", "harp", "twinrep", "flyingbird"}
    elsewhere = listed[listed["distances_key"] != listed["checkpoint_key"]]
    assert len(elsewhere) == 12 and set(elsewhere["method"]) == {"radmm"}


def test_odd_and_corrected_values_are_noted():
    board = taxonomy.leaderboard().set_index(["data", "structure_group", "network", "sparsity", "method"])["note"]
    assert "same clean accuracy" in board["cifar10", "unstructured", "resnet18", 0.95, "harp"]
    assert "below that at 75 %" in board["svhn", "structured", "resnet18", 0.5, "twinrep"]
    assert "was 85.71/44.20" in board["svhn", "unstructured", "resnet18", 0.99, "hydra"]


def test_history_agrees_with_the_leaderboard():
    """Whatever stands after a change is in the table, whatever was removed is not."""
    history = taxonomy.leaderboard_history()
    assert history["change"].value_counts().to_dict() == {"removed": 9, "bold": 8, "added": 6, "value": 4}
    columns = ["data", "structure_group", "network", "method", "sparsity"]
    board = taxonomy.leaderboard().set_index(columns)
    for row in history.to_dict("records"):
        place = tuple(row[c] for c in columns[:4])
        if row["change"] == "removed":
            assert (*place, row["sparsity_before"]) not in board.index
        else:
            now = board.loc[(*place, row["sparsity_after"])]
            assert (now["clean"], now["robust"], str(now["bold"]).lower()) == (
                row["clean_after"],
                row["robust_after"],
                row["bold_after"],
            )


def test_a_table_can_be_changed_without_changing_the_next_one():
    mine = taxonomy.leaderboard()
    mine["clean"] = 0.0
    assert taxonomy.leaderboard()["clean"].min() > 10


# The networks


@pytest.mark.parametrize(
    ("network", "weights", "layers", "macs", "parameters"),
    [("resnet18", 11_164_352, 21, 555_422_720, 11_173_962), ("vgg16", 15_302_848, 16, 313_788_928, 15_311_818)],
)
def test_networks_have_the_sizes_of_the_survey(network, weights, layers, macs, parameters):
    table = taxonomy.networks().query("network == @network")
    assert (table["weights"].sum(), len(table), table["macs"].sum()) == (weights, layers, macs)
    assert list(table["index"]) == list(range(layers))
    shapes = json.loads(data_path("state_dict_keys.json").read_text("utf-8"))[network]
    assert sum(prod(s) for k, s in shapes.items() if k.endswith((".weight", ".bias"))) == parameters
    for row in table.to_dict("records"):
        out = row["output_size"]
        assert list(row["weight_shape"]) == shapes[f"{row['layer']}.weight"]
        assert row["weights"] == prod(row["weight_shape"])
        assert row["bias"] == prod(shapes.get(f"{row['layer']}.bias", [0]))
        assert row["macs"] == row["weights"] * (prod(out[1:]) if row["kind"] == "conv" else 1)
        assert (row["weight_shape"][0], row["weight_shape"][1]) == (out[0], row["input_size"][0])


# Words and queries


@pytest.mark.parametrize(
    "words", [w for w in vars(taxonomy).values() if isinstance(w, type) and issubclass(w, StrEnum) and list(w)]
)
def test_every_word_explains_itself(words):
    for word in words:
        assert words(str(word)) is word and word.label and word.text.endswith(".") and word.text[0].isupper()


def test_a_method_is_found_by_key_name_and_survey_key():
    hydra = taxonomy.method("hydra")
    assert (
        hydra is taxonomy.method("HYDRA") is taxonomy.method("hydra_sehwag2020hydra") is taxonomy.method("HYDRA_Sehwag2020Hydra")
    )
    assert taxonomy.method("SR-GKP").key == "srgkp" and taxonomy.method("bcs-p").key == "bcsp"


@pytest.mark.parametrize(
    ("query", "keys"),
    [
        ({"pipeline": "during", "criterion": "lwm"}, "flyingbird"),
        ({"pipeline": ["before", "during"], "criterion": "lis"}, "rst intrain"),
        ({"objective": "kd"}, "pwoa deadwooding"),
        ({"objective": "none"}, "rst"),
        ({"schedule": "iterative", "pipeline": "after"}, "sehwag19 bnap fre"),
        ({"schedule": "both"}, "bnap"),
        ({"schedule": "unspecified", "pipeline": "before"}, "awt"),
        ({"structure": "kernels"}, "srgkp"),
        ({"locality": "unspecified"}, "awt"),
        ({"locality": "local", "pipeline": "during"}, "bcsp"),
        ({"criterion": "HGM"}, "rfp"),
        ({"benchmarked": "structured"}, "radmm harp pwoa twinrep"),
        ({"benchmarked": False, "pipeline": "during"}, "bcsp dnr intrain"),
        ({"criterion": "bcs", "pipeline": "after"}, ""),
    ],
)
def test_queries_answer_as_by_hand(query, keys):
    assert [m.key for m in taxonomy.methods(**query)] == keys.split()


def test_a_cell_spells_out_both_schedules():
    cell = taxonomy.cell_of("bnap")
    assert cell["schedule"] == ("one_shot", "iterative") and cell["structure"] == ("weights", "filters")
    assert taxonomy.cell_of(taxonomy.method("awt"))["schedule"] == ("unspecified",)


def test_frame_has_one_row_a_method():
    table = taxonomy.frame()
    assert (
        len(table) == 26
        and table.set_index("key").loc["deadwooding", "objectives"] == "pretraining: unspecified; finetuning: kd + fgsm"
    )
    assert list(taxonomy.frame(taxonomy.methods("before"))["name"]) == [
        "Cosentino19",
        "Li20",
        "Wang20",
        "RST",
        "RobustBird",
        "AWT",
    ]
    assert len(taxonomy.frame([])) == 0 and list(taxonomy.frame([]).columns) == list(table.columns)


def test_a_method_can_be_sent_to_another_process_and_hashed():
    for m in taxonomy.methods():
        assert pickle.loads(pickle.dumps(m)) == m and {m: 1}[m] == 1


def test_importing_the_taxonomy_loads_nothing_heavy():
    heavy = ("torch", "pandas", "pydantic", "numpy")
    code = f"import sys, apnb.taxonomy as t; t.methods(); print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=data_path().parent, check=True)
    assert done.stdout.strip() == "[]"


# What is said when something is wrong


@pytest.mark.parametrize(
    ("call", "given", "offered"),
    [
        (lambda: taxonomy.methods(criterion="lsi"), "'lsi'", "'lis'"),
        (lambda: taxonomy.methods(pipeline=["after", "befor"]), "'befor'", "'before'"),
        (lambda: taxonomy.methods(objective="pgd"), "'pgd'", "'pgd_at'"),
        (lambda: taxonomy.methods(structure="filter"), "'filter'", "'filters'"),
        (lambda: taxonomy.methods(benchmarked="unstructurd"), "'unstructurd'", "'unstructured'"),
        (lambda: taxonomy.method("harpp"), "'harpp'", "'HARP'"),
        (lambda: taxonomy.method("twin-rap"), "'twin-rap'", "'TwinRep'"),
    ],
)
def test_an_unknown_word_is_answered_with_the_nearest(call, given, offered):
    with pytest.raises(Invalid) as error:
        call()
    assert given in str(error.value) and offered in str(error.value)


def test_a_method_checks_itself():
    with pytest.raises(Invalid, match="pruning before training has 'pruning_step' and 'training_step'"):
        dataclasses.replace(taxonomy.method("hydra"), pipeline="before")
    with pytest.raises(Invalid, match="no criterion 'magnitude'"):
        dataclasses.replace(taxonomy.method("hydra"), criterion="magnitude")
    with pytest.raises(Invalid, match="stands alone"):
        dataclasses.replace(taxonomy.method("hydra"), locality=("local", "unspecified"))
    with pytest.raises(Invalid, match="at least two"):
        taxonomy.Reading("criterion", "within_survey", {"readme": "LIS"}, "lis", "because")


def test_an_entry_by_hand_is_read(entry, tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(entry))
    m = taxonomy.check_entry(path)
    assert m == taxonomy.check_entry(entry) == taxonomy.check_entry(str(path))
    assert m.criterion is taxonomy.Criterion.lwm and m.benchmarked == () and m.survey_key is None
    assert m not in taxonomy.methods()


def test_every_surveyed_method_is_a_valid_entry(document):
    assert tuple(taxonomy.check_entry(m) for m in document["methods"]) == taxonomy.methods()


def test_every_problem_of_an_entry_is_told_in_one_sentence(entry, tmp_path):
    del entry["title"]
    entry |= {"critereon": "lwm", "year": "2025", "locality": [], "schedule": "oneshot", "code": "on request"}
    entry["objectives"] = {"pretraining": ["trade"]}
    entry["readings"] = [
        {"field": "scedule", "scope": "within_survey", "readings": {"a": "x", "b": "y"}, "chosen": "x", "reason": "z"}
    ]
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(entry))
    with pytest.raises(Invalid) as error:
        taxonomy.check_entry(path)
    told = str(error.value)
    assert told.startswith(f"the taxonomy entry {str(path)!r} has 9 problems: ") and "\n" not in told
    for part in (
        "the field 'title' is missing",
        "no field 'critereon'; did you mean 'criterion'",
        "year must be a valid integer, but is '2025'",
        "locality is empty: name at least one of 'local', 'global'",
        "no schedule 'oneshot'; did you mean 'one_shot'",
        "code must be a link",
        "no objective of pretraining 'trade'; did you mean 'trades'",
        "pruning after training has 'pretraining' and 'finetuning'",
        "no field of a reading 'scedule'; did you mean 'schedule'",
    ):
        assert part in told


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "there is no file"),
        (b"{'key': 1}", "is not JSON"),
        (b"[]", "one JSON object"),
        (b"\xff\xfe\x00", "not a text file"),
    ],
)
def test_a_file_that_is_no_entry_is_refused_in_a_sentence(content, told, tmp_path):
    path = tmp_path / "mine.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(Invalid, match=told):
        taxonomy.check_entry(path)
    with pytest.raises(Invalid, match="cannot be read"):
        taxonomy.check_entry(tmp_path)


def test_without_pydantic_a_sentence_says_what_to_install(entry, monkeypatch):
    monkeypatch.setitem(sys.modules, "pydantic", None)
    with pytest.raises(Invalid, match="pip install pydantic"):
        taxonomy.check_entry(entry)
