"""A contribution to the survey: what a record holds, what is said of every mistake in it, and the text of the issue."""

import copy
import json

import pytest
import torch

import apnb
from apnb import checkpoints, contribution, taxonomy
from apnb.contribution import ARCHITECTURES, DATA, SPARSITIES, check, issue_text, model_key, record, survey_form, write
from apnb.curves import Distances
from apnb.errors import Invalid

AP = "Mine_Reader2026Small"
KEYS = [f"{AP}_R18_CIFAR10_US_{s}" for s in SPARSITIES["US"]]
ENTRY = {
    "key": "mine", "name": "Mine", "survey_key": AP, "title": "A title", "first_author": "Reader", "year": 2026, "pipeline": "after",
    "objectives": {"pretraining": ["pgd_at"], "finetuning": ["trades"]}, "schedule": "one_shot", "structures": ["weights"],
    "locality": ["global"], "criterion": "lwm", "paper": "https://example.org/paper.pdf",
}  # fmt: skip
ROW = {"clean": 0.8, "robust": 0.45, "n": 10_000, "eps": 0.031, "attacks": "standard", "subset": "first", "data": "cifar10"}
CURVE = Distances(value=torch.tensor([0.0] * 71 + [0.05] * 57), name="mine", method="HO-FMN as the survey ran it", eps=8 / 255)
DRIVE = {key: ("1" + 31 * "a" + str(i), ".pt") for i, key in enumerate(KEYS)}


@pytest.fixture
def sound():
    told = {"architecture": "They load as they are.", "normalization": "None is needed."}
    return record(
        {key: ROW for key in KEYS}, entry=ENTRY, hofmn=dict.fromkeys(KEYS, CURVE), models=DRIVE,
        distances={k: (drive, ".pickle") for k, (drive, _) in DRIVE.items()}, **told,
    )  # fmt: skip


def test_a_record_goes_through_a_file_to_the_text_of_the_issue(sound, tmp_path):
    path = write(tmp_path / "record.json", sound)
    checked = check(path)
    assert (checked.problems, checked.warnings, checked.kind, checked.entry.name) == ((), (), "evaluation record", "Mine")
    assert json.loads(path.read_text("utf-8")) == sound == json.loads(json.dumps(sound))
    text = issue_text(None, path)
    assert text == issue_text(ENTRY, sound)
    for i, key in enumerate(KEYS, 1):
        assert f'## Evaluation Results of Model n°{i}\n\n_Model GDrive:_ "{key}" : ["{DRIVE[key][0]}", ".pt"]\n' in text
    assert text.count("_Clean Accuracy:_ 80.00") == text.count("_Robust Accuracy (AA):_ 45.00") == 3
    assert text.count("_Robust Accuracy (HO-FMN):_ 44.53") == 3  # 57 of 128
    entry = json.loads(text.split("```json\n")[1].split("```")[0])
    assert entry == survey_form(ENTRY) and entry["A: Finetuning"] == "Adversarial Training (AT) TRADES"
    assert "They load as they are.\nNone is needed.\n" in text


def change(model=0, **values):
    def act(r):
        r["models"][model] |= values

    return act


def made(model=0, **values):
    def act(r):
        r["models"][model]["made"]["aa"] |= values

    return act


def entry(**values):
    def act(r):
        r["entry"] |= values

    return act


MISTAKES = {
    "only two": (lambda r: r["models"].pop(), "R18 CIFAR10 US lacks 99"),
    "no three of a kind": (change(2, key=KEYS[2].replace("R18", "V16")), "R18 CIFAR10 US lacks 99; V16 CIFAR10 US lacks 90 and 95"),
    "no key at all": (change(key="mine-90"), "'mine-90' must read NAME_AuthorYEARWord_ARCH"),
    "no author": (change(key="Mine_R18_CIFAR10_US_90"), "'Mine' must read like 'HYDRA_Sehwag2020Hydra'"),
    "another architecture": (change(key=KEYS[0].replace("R18", "R50")), "the architecture is 'R50', but the survey has R18 and V16"),
    "another data set": (change(key=KEYS[0].replace("CIFAR10", "MNIST")), "the data set is 'MNIST'"),
    "another structure": (change(key=KEYS[0].replace("_US_", "_F_")), "the structure is 'F', but the survey has US and S"),
    "a sparsity of the other table": (change(key=KEYS[0][:-2] + "50"), "the sparsity is '50', but with US the survey has 90, 95 and 99"),
    "one network twice": (lambda r: r["models"].append(copy.deepcopy(r["models"][0])), "stands there 2 times"),
    "two methods": (change(key=KEYS[0].replace("Mine", "Yours")), "a record has the networks of one method"),
    "another entry": (entry(survey_key="Yours_Reader2026Small"), f"the keys begin with {AP}, but the entry's survey_key is Yours"),
    "an entry without key": (entry(survey_key=None), f"has no survey_key; give the first part of the keys, {AP}"),
    "an entry of filters": (entry(structures=["filters"]), "says US, but the entry has the structure filters"),
    "a wrong word in the entry": (entry(criterion="lvm"), "no criterion 'lvm'; did you mean"),
    "robust above clean": (change(aa=80.01), "robust accuracy (AA), 80.01, is above the clean accuracy, 80.00"),
    "HO-FMN above clean on the same points": (
        lambda r: (r["models"][0].update(hofmn=99.0), r["models"][0]["made"]["hofmn"].update(n=r["models"][0]["made"]["aa"]["n"])),
        "robust accuracy (HO-FMN), 99.00, is above the clean accuracy, 80.00, which cannot be",
    ),
    "an entry that is a list": (lambda r: r.update(entry=[1]), "entry"),
    "an entry that is a path": (lambda r: r.update(entry="/etc/hostname"), "entry"),
    "above 100": (change(clean=101.0), "the clean accuracy is 101, expected per cent from 0 to 100"),
    "below 0": (change(aa=-1.0), "robust accuracy (AA) is -1, expected per cent"),
    "no number": (change(aa=float("nan")), "robust accuracy (AA) is nan"),
    "shares": (change(clean=0.8, aa=0.45, hofmn=0.44), "looks like a share; multiply by 100"),
    "no HO-FMN": (change(hofmn=None), "HO-FMN is missing; apnb.evaluation.survey_protocol"),
    "weaker attacks": (made(attacks="lite"), "attacks='lite'; AutoAttack is attacks='standard'"),
    "another radius": (made(eps=0.15), "AutoAttack at eps 0.15, but the survey's tables are at 0.031 or 8/255"),
    "other data": (made(data="digits"), "the key says CIFAR10, but the network was evaluated on digits"),
    "a link for an id": (change(model_file=["https://drive.example/file/d/1a/view", ".pt"]), "the part of the link between /d/ and /view"),
    "no extension": (change(distances_file=[DRIVE[KEYS[0]][0], "pickle"]), "the extension of the file with the distances is 'pickle'"),
    "a text for a number": (change(aa="45"), "models.0.aa: input should be a valid number, got '45'"),
    "a field that is not there": (lambda r: r["models"][1].pop("clean"), "the field 'models.1.clean' is missing"),
    "a field too many": (change(robust=45.0), "no field 'models.0.robust'"),
    "another format": (lambda r: r.update(record=2), "the record has format 2, this version of apnb reads 1"),
    "no models": (lambda r: r.update(models=[]), "models: list should have at least 1 item"),
    "very many models": (lambda r: r.update(models=[1] * 10**5), "models: list should have at most 100 items"),
    "a key that clears the screen": (change(key="X\x1b[2J_R18_CIFAR10_US_90"), r"X\x1b[2J_R18"),
}  # fmt: skip


@pytest.mark.parametrize(("act", "sentence"), MISTAKES.values(), ids=MISTAKES)
def test_every_mistake_has_its_sentence(sound, act, sentence):
    act(sound)
    problems = check(sound).problems
    assert any(sentence in p for p in problems), problems
    assert all(p.isprintable() for p in problems)
    with pytest.raises(Invalid, match="there is no issue to write yet"):
        issue_text(None, sound)


REMARKS = {
    "few points": (made(n=500), "500 test images were attacked; the survey attacks the first 10000"),
    "exactly 8/255": (made(eps=8 / 255), "AutoAttack at eps 0.03137; the survey's code has 0.031"),
    "another draw of SVHN": (
        lambda r: [m.update(key=m["key"].replace("CIFAR10", "SVHN")) or m["made"]["aa"].update(data="svhn", subset="random")
                   for m in r["models"]], "are not the first ones"),
    "not uploaded": (change(model_file=["", ""]), "is not uploaded yet: its Google Drive id is empty"),
    "HO-FMN above clean on fewer points": (change(hofmn=80.47), "80.47, is above the clean accuracy, 80.00; it is of other, fewer images"),
    "many points of HO-FMN": (lambda r: r["models"][0]["made"]["hofmn"].update(n=500), "HO-FMN on 500 points; the survey takes 128"),
    "what attacks said": (made(warnings=["gradients are zero"]), "the evaluation warned: gradients are zero"),
    "nothing on normalisation": (lambda r: r.update(normalization=" "), "the normalization is not described"),
    "no entry": (lambda r: r.update(entry=None), "has no taxonomy entry with it"),
    "known already": (lambda r: [m.update(key=m["key"].replace(AP, "HARP_Zhao2023Holistic")) for m in r["models"]]
                      and r.update(entry=None), "HARP_Zhao2023Holistic is a method that the survey lists already"),
}  # fmt: skip


@pytest.mark.parametrize(("act", "sentence"), REMARKS.values(), ids=REMARKS)
def test_what_was_made_otherwise_is_said_and_not_refused(sound, act, sentence):
    act(sound)
    checked = check(sound)
    assert not checked.problems and any(sentence in w for w in checked.warnings), checked


def test_further_networks_may_be_fewer_than_three(sound):
    sound["models"].append(copy.deepcopy(sound["models"][0]) | {"key": KEYS[0].replace("R18", "V16")})
    assert not check(sound).problems


def test_an_entry_is_told_from_a_record(tmp_path):
    assert check(ENTRY).kind == "taxonomy entry" and not check(ENTRY).problems
    (problem,) = check(ENTRY | {"year": 26}).problems
    assert "the year 26 must be a year of four digits" in problem
    deep, long = '{"a":' + "[" * 10**5, '{"a": ' + "7" * 5000 + "}"
    for content, sentence in (
        ("[1]", "expected one JSON object"), ("{", "is not JSON"), (deep, "nested too deeply"), (long, "thousands of digits")
    ):  # fmt: skip
        (tmp_path / "odd.json").write_text(content)
        with pytest.raises(Invalid, match=sentence):
            check(tmp_path / "odd.json")
    with pytest.raises(Invalid, match=r"there is no file .*none\.json.* with a taxonomy entry or an evaluation record"):
        check(tmp_path / "none.json")
    with pytest.raises(Invalid, match="cannot be read"):
        check(tmp_path)
    with pytest.raises(Invalid, match="needs a record and an entry, and got taxonomy entry"):
        issue_text(ENTRY, ENTRY)


def test_the_command_says_each_problem_and_ends_with_status_2(cli, sound, tmp_path):
    path = write(tmp_path / "record.json", sound)
    status, out, _ = cli("methods", "--check", path)
    assert status == 0 and f"a valid evaluation record of 3 networks of {AP}" in out
    assert cli("methods", "--check", write(tmp_path / "entry.json", ENTRY))[:2] == (
        0, f"{tmp_path / 'entry.json'}: a valid taxonomy entry for Mine (after, lwm)\n"
    )  # fmt: skip
    sound["models"][0]["aa"] = 90.0
    sound["models"].pop()
    status, out, err = cli("methods", "--check", write(path, sound))
    assert status == 2 and not out and len(err.splitlines()) == 2 and "lacks 99" in err and "above the clean accuracy" in err
    assert cli("methods", "--check", write(path, ENTRY | {"pipeline": "later"}))[0] == 2


def test_an_evaluation_becomes_a_row_in_per_cent():
    net = apnb.networks.build("cnn", channels=1, classes=10).eval()
    evaluation = apnb.evaluate(net, "digits", n=16, attacks="pgd", diagnostics=False)
    (model,) = record({KEYS[0]: evaluation})["models"]
    assert model["clean"] == round(100 * evaluation.clean_accuracy, 2) and model["hofmn"] is None
    assert model["made"]["aa"] | {"n": 16, "eps": 0.15, "attacks": "pgd", "data": "digits"} == model["made"]["aa"]
    curve = evaluation.curve("mine")
    (model,) = record({KEYS[0]: evaluation}, hofmn={KEYS[0]: curve})["models"]
    assert model["hofmn"] == round(100 * curve.accuracy(0.15), 2) and model["made"]["hofmn"]["n"] == 16


def test_what_is_no_evaluation_is_refused():
    with pytest.raises(Invalid, match=r"is of type int, without clean; give what apnb\.evaluate returned"):
        record({KEYS[0]: 45})
    with pytest.raises(Invalid, match="model files are given for 'other', which has no evaluation"):
        record({KEYS[0]: ROW}, models={"other": ("", "")})


def test_keys_are_those_of_the_published_networks():
    assert set(ARCHITECTURES.values()) == set(checkpoints.NETWORKS) and SPARSITIES.keys() == checkpoints.GROUPS.keys()
    for e in checkpoints.entries():
        survey_key = e.text.rsplit("_", 4)[0]
        structure = "weights" if e.structure == "unstructured" else "filters"
        assert model_key(survey_key, e.network, e.data, structure, e.sparsity) == e.text
    assert set(DATA) == set(taxonomy.leaderboard()["data"])
    with pytest.raises(Invalid, match="the architecture is 'cnn'"):
        model_key(AP, "cnn", "cifar10", "weights", 0.9)


def test_the_survey_s_own_entries_come_out_in_its_words():
    """Wherever the stored words of its taxonomy.json differ from ours, an entry names the disagreement, or there is no settled word."""
    fields = {"pipeline": "Type of Pipeline:", "survey_key": "ap_key", "paper": "link_to_paper", "structures": "Pruning structure",
              "locality": "Pruning locality", "criterion": "Pruning criterion"}  # fmt: skip
    compared = 0
    for m in taxonomy.methods():
        form, letter = survey_form(m), m.pipeline[0].upper()
        stages = {stage: name for (pipeline, stage), name in contribution._STAGE_FIELDS.items() if pipeline == m.pipeline}
        names = {**fields, **stages, "schedule": f"{letter}: OneShot (1S) vs Iterative (IT)"}
        for field, said in m.sources.items():
            if "form" not in said or names.get(field) not in form:
                continue
            compared += 1
            assert form[names[field]] == said["form"] or field in {r.field for r in m.readings}, (m.key, field)
    assert compared > 150
