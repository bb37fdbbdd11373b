import numpy as np

from flaxclip.figures import draw_predictions, draw_similarities, figure_pixels


def test_dollars_in_names_and_captions_are_no_formulas():
    """Between two of them Matplotlib reads a formula: others' captions seldom are one."""
    image, words = np.zeros((4, 4, 3), np.uint8), ["from $5 to $9", r"$\frac{$"]
    similarities = draw_similarities([image, image], words, np.eye(2))
    predictions = draw_predictions([image, image], words, [words, words])
    for figure in (similarities, predictions):
        assert figure_pixels(figure).std() > 0
    labels = similarities.axes[1].get_yticklabels()
    titles = [axes.title for axes in predictions.axes[:2]]
    guesses = [text for axes in predictions.axes[:2] for text in axes.texts]
    shown = [*labels, *titles, *guesses]
    assert len(shown) == 2 + 2 + 4
    assert not any(text.get_parse_math() for text in shown)
