"""The page in a real browser, opened as a file and without a network."""

import numpy as np
import pytest
from support.browser import Browser, find

import gpuconv
from gpuconv.data import load_dataset
from gpuconv.explorer import explore
from gpuconv.training import TrainConfig, fit

pytestmark = [pytest.mark.slow, pytest.mark.skipif(find() is None, reason="there is no Chromium")]

#: Markup in a name would run this.
HOSTILE = '</script><img src=x onerror="document.title=\'run\'"><script>document.title="run"</script>{{data}}'


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A LeNet that knows its digits, from a short run that kept its epochs; the page that shows it, and the browser."""
    folder = tmp_path_factory.mktemp("run") / "lenet"
    data = load_dataset("mnist-sample")
    with gpuconv.use_backend("numba"):
        model = fit(TrainConfig(epochs=2, keep_epochs=True, backend="numba"), folder, dataset=data).model
    page = explore(folder, name=HOSTILE).save(folder / "page.html")
    with Browser() as browser:
        browser.open(page.as_uri(), "Boolean(globalThis.gpuconvExplorer)")
        yield model, data, browser


def test_a_digit_that_is_drawn_is_recognised(trained):
    """A bundled 3, drawn with the pointer row by row, is a 3; and so are the network's logits those of gpuconv."""
    model, data, browser = trained
    right = model.predict(data.test_images).argmax(1) == data.test_labels
    digit = data.test_images[np.flatnonzero(right & (data.test_labels == 3))[0]]
    left, top, side = browser.evaluate(
        "(() => { const b = document.getElementById('pad').getBoundingClientRect(); return [b.x, b.y, b.width]; })()"
    )
    browser.evaluate("document.getElementById('clear').click()")
    assert browser.evaluate("document.getElementById('answer').textContent") is not None
    for row, pixels in enumerate(digit > 150):
        edges = np.flatnonzero(np.diff(np.concatenate([[False], pixels, [False]])))
        for start, end in edges.reshape(-1, 2):
            y, x0, x1 = (float(v) for v in ((row + 0.5) / 28, (start + 0.5) / 28, (end - 0.5) / 28))
            y, x0, x1 = top + y * side, left + x0 * side, left + x1 * side
            browser.mouse("mousePressed", x0, y, held=True)
            browser.mouse("mouseMoved", x1 + 0.5, y, held=True)
            browser.mouse("mouseReleased", x1 + 0.5, y)
    browser.evaluate("new Promise((done) => setTimeout(done, 100))")
    assert browser.evaluate("document.getElementById('answer').textContent").startswith("3:")

    images = data.test_images[:50]
    code = f"{images.reshape(50, -1).tolist()}.map((raw) => gpuconvExplorer.logitsOf(Uint8Array.from(raw)))"
    expected = model(gpuconv.Tensor(model.prepare(images))).numpy()
    np.testing.assert_allclose(browser.evaluate(code), expected, atol=1e-4)


def test_the_terms_that_are_shown_add_up(trained):
    """At a pointed value of the first convolution, products and bias make the value; lines lead on."""
    _, _, browser = trained
    browser.evaluate("document.querySelectorAll('#samples button')[3].click()")
    x, y = browser.evaluate(
        "(() => { const b = gpuconvExplorer.views[1].canvas.getBoundingClientRect(); return [b.x, b.y]; })()"
    )
    for step in range(8):
        browser.mouse("mouseMoved", x + 30 + 5 * step, y + 30 + 3 * step)
        terms = browser.evaluate("[...document.querySelectorAll('[data-term]')].map((e) => Number(e.dataset.term))")
        bias = float(browser.evaluate("document.querySelector('[data-bias]').dataset.bias"))
        value = float(browser.evaluate("document.querySelector('[data-value]').dataset.value"))
        assert len(terms) == 25
        assert max(0.0, sum(terms) + bias) == pytest.approx(value, abs=1e-4)
    assert browser.evaluate("document.querySelectorAll('#lines line').length") >= 1


def test_the_slider_changes_filters(trained):
    """The first epoch's filters are others, and the keyboard moves the slider."""
    _, _, browser = trained
    weights = "Array.from(gpuconvExplorer.network.array('conv1.weight'))"
    after = browser.evaluate(weights)
    browser.evaluate("document.getElementById('epoch').focus()")
    browser.press("Home", 36)
    assert browser.evaluate("document.getElementById('epoch-name').textContent") == "before training"
    before = browser.evaluate(weights)
    assert np.abs(np.subtract(before, after)).max() > 0.01
    browser.press("End", 35)
    np.testing.assert_array_equal(browser.evaluate(weights), after)


def test_it_explains_the_answer(trained):
    """Both pictures of what matters are drawn, and a sentence says what matters most."""
    _, _, browser = trained
    browser.evaluate("document.querySelectorAll('#samples button')[3].click()")
    text = "document.getElementById('why-text').textContent"
    for _ in range(50):
        if browser.evaluate(text):
            break
        browser.evaluate("new Promise((done) => setTimeout(done, 100))")
    assert "pixels" in browser.evaluate(text)


def test_names_stay_text_and_nothing_complains(trained):
    """A hostile name is shown as it is, and its code did not run; nobody wrote to the console, nothing was fetched."""
    _, _, browser = trained
    assert browser.evaluate("document.getElementById('name').textContent") == HOSTILE
    assert browser.evaluate("document.title") != "run"
    assert browser.evaluate("performance.getEntriesByType('resource').map((e) => e.name)") == []
    assert browser.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert browser.complaints == []
