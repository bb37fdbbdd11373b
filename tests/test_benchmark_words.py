import re
from types import SimpleNamespace

import pytest

from flaxclip.benchmark.embeddings import Embedder
from flaxclip.benchmark.measure import Settings, measure_tasks
from flaxclip.benchmark.prompts import choose_wording
from flaxclip.benchmark.readers import open_test
from flaxclip.benchmark.results import MeasuredCheckpoint
from flaxclip.benchmark.tasks import Prompts, find_tasks
from flaxclip.errors import InputError
from flaxclip.zero_shot.class_prompts import check_distinct, class_prompts
from tests.helpers.image_tars import labelled, write_wds


def open_own(root, names=("cat", "dog", "owl")):
    write_wds(root, labelled(), names=names)
    (task,) = find_tasks([f"wds:{root}"])
    return task, open_test(task, root, 16)[1]


def test_braces_belong_to_a_name_or_to_the_text_never_to_chance():
    """As CLIP_benchmark's `template.format(c=name)` has them, with {} for {c}."""
    assert class_prompts(("set {1}", "{}", "{parent}"), ("my {}",)) == [
        ("my set {1}",), ("my {}",), ("my {parent}",)
    ]  # fmt: skip
    assert class_prompts(("{} > dog",), ("a {}, a {parent}",)) == [("a dog, a {}",)]
    assert class_prompts(("dog",), ("{{a}} {}",)) == [("{a} dog",)]
    for template in ("a {} of {colour}", "a {} {0}", "{ {}", "a {} }"):
        with pytest.raises(InputError, match="braces other than"):
            class_prompts(("dog",), (template,))
    whole = {"dog": ("a {dog}",)}
    assert class_prompts(("dog",), whole) == [("a {dog}",)]


@pytest.mark.parametrize(
    ("names", "templates", "message"),
    [
        (["cat", "  "], ["a {}"], "class 1 has no name"),
        (["cat", ["dog", " "]], ["a {}"], "class 1 has an empty name"),
        (["cat", "animal > "], ["a {}"], "class 1 has an empty name: 'animal > '"),
        (["cat"], [""], "template '' has no {}"),
        (["cat"], ["a {{}}"], "template 'a {{}}' has no {}"),
        (["cat"], [], "no class names or no templates"),
        (["cat"], {"cat": ["a cat", " "]}, "class 'cat' has an empty prompt"),
        (["cat"], {"cat": []}, "empty list of prompts"),
    ],
)
def test_words_that_are_not_there_are_refused(names, templates, message):
    with pytest.raises(InputError, match=re.escape(message)):
        class_prompts(names, templates)


def test_a_prompt_that_stands_alone_is_one_prompt_and_not_its_letters():
    whole = {"cat": "cat", "dog": ["a dog", "my dog"]}
    assert class_prompts(["cat", "dog"], whole) == [("cat",), ("a dog", "my dog")]
    with pytest.raises(InputError, match="class 'cat' has an empty prompt"):
        class_prompts(["cat"], {"cat": " "})


def test_a_name_and_a_list_of_that_name_alone_are_one():
    with pytest.raises(InputError, match="two classes are named 'cat'"):
        check_distinct(("cat", ["cat"]))


def test_spaces_around_a_name_are_asked_as_they_are():
    assert class_prompts((" dog",), ("a {}",)) == [("a  dog",)]


def test_names_that_several_classes_have_are_told(tmp_path):

    task, data = open_own(tmp_path / "wds_x")
    data = data._replace(class_names=None)

    def notes(*names):
        return choose_wording(task, data, "openai", Prompts(names, ("a {}",))).notes

    assert notes("cat", "dog", "owl") == ()
    (note,) = notes("cat", "dog", "dog")
    assert note.startswith("several classes share a name, and cannot be told apart: dog;")
    (note,) = notes("cat", ("dog", "pet"), ("owl", "pet"))
    assert note == "names that several classes have, beside others: pet"
    (note,) = notes("cat", ("dog", "dog", "hound"), "owl")
    assert note == "a name that stands twice in a class counts twice: dog, dog, hound"


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("classnames.txt", "cat\n\nowl\n\n", "class 1 has no name"),
        ("zeroshot_classification_templates.txt", "a {c}\n\nthe {c}\n", "template '' has no {}"),
    ],
)
def test_an_empty_line_in_a_webdatasets_words_is_refused(file, text, message, tmp_path):
    """Left out, it gave the names behind it to the labels before theirs."""
    write_wds(tmp_path / "wds_x", labelled())
    (tmp_path / "wds_x" / file).write_text(text)
    (task,) = find_tasks([f"wds:{tmp_path / 'wds_x'}"])
    _, data = open_test(task, tmp_path, 16)
    with pytest.raises(InputError, match=message):
        choose_wording(task, data, "clip_benchmark")


def test_classes_of_one_name_keep_their_own_synonyms(tmp_path):
    """ImageNet has two cranes and two maillots; put into another order, both came out as one."""
    task, data = open_own(tmp_path / "wds_x", ("owl", "crane", "crane"))
    own = Prompts((("crane", "bird"), ("crane", "machine"), "owl"), ("a {}",))
    wording = choose_wording(task, data, "openai", own)
    assert wording.class_names == ("owl", ("crane", "bird"), ("crane", "machine"))


def test_names_that_differ_in_signs_alone_are_put_into_the_order_of_the_labels(tmp_path):
    root = write_wds(tmp_path / "wds_x", labelled(), names=("C", "C++", "C#", "the-rest"))
    (task,) = find_tasks([f"wds:{root}"])
    data = open_test(task, root, 16)[1]
    own = Prompts(("c#", "The rest", "c++", "c"), ("{} code",))
    assert choose_wording(task, data, "openai", own).class_names == ("c", "c++", "c#", "The rest")


def test_words_of_a_prompt_file_for_no_task_are_told(tmp_path):
    """A misspelt task's words were passed over without a word."""
    own, said = {"stl-10": Prompts(("a",)), "cifar10": Prompts(("b",))}, []
    settings = Settings(tmp_path, tmp_path, own_prompts=own)
    embedder = Embedder.__new__(Embedder)  # no model is needed where there is no image
    embedder.model = SimpleNamespace(transform=SimpleNamespace(size=16))
    checkpoint = MeasuredCheckpoint("", None)
    measured = measure_tasks(embedder, checkpoint, find_tasks(["cifar10"]), settings, said.append)
    assert list(measured.missing) == ["cifar10"]
    assert said[-1] == "the prompt file has words for no task that was measured here: stl-10"
