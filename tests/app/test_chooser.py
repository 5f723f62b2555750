"""The choice of a device: what works is offered by name, what does not says why, and old choices are replaced."""

from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from app import engine
from app.strings import name_of
from subllm.checkpoints import device

MAIN = str(Path(__file__).parents[2] / "app" / "main.py")


@pytest.fixture
def app(tiny_checkpoint, monkeypatch):
    monkeypatch.setenv("SUBLLM_ROOTS", str(tiny_checkpoint.parent))
    return AppTest.from_file(MAIN, default_timeout=60)


def gpus(monkeypatch, *names, faults=()):
    """Make a machine of GPUs with these names, and with reasons why others do not work."""
    known = [f"cuda:{index}" for index in range(len(names))]
    monkeypatch.setattr(engine, "devices", lambda: [*known, "cpu"])
    monkeypatch.setattr(engine, "dtypes", lambda name: ["float32"] if name == "cpu" else ["float16", "float32"])
    monkeypatch.setattr(engine, "device_faults", lambda: list(faults))
    monkeypatch.setattr("app.engine.models.device_name", lambda device: names[device.index])


def test_every_device_is_shown_with_its_name_and_with_the_dtypes_that_suit_it(app, monkeypatch):
    gpus(monkeypatch, "NVIDIA H100", "Tesla T4")
    app.run()
    assert not app.exception
    assert app.selectbox(key="device").options == ["cuda:0, NVIDIA H100", "cuda:1, Tesla T4", "CPU"]
    app.selectbox(key="device").set_value("cuda:1").run()
    assert app.selectbox(key="dtype").value == "float16"
    app.selectbox(key="device").set_value("cpu").run()
    assert app.selectbox(key="dtype").value == "float32", "float16 is not among those of the CPU"
    assert not app.exception and not app.warning


@pytest.mark.parametrize(
    ("language", "checkpoint", "long"),
    [("en", "shipped:colt5", True), ("zh", "shipped:colt5", True), ("en", "tiny", False)],
)
def test_a_name_that_the_selector_cuts_off_is_written_out_below_it(app, language, checkpoint, long):
    app.session_state["language"], app.session_state["checkpoint"] = language, checkpoint
    app.run()
    captions = [each.value.replace("\\", "") for each in app.sidebar.caption]
    assert (name_of(checkpoint, language) in captions) == long


@pytest.mark.parametrize(
    ("language", "said"),
    [("en", "This machine has no usable device cuda:3"), ("zh", "本机没有可用的设备 cuda:3")],
)
def test_a_device_that_this_machine_lacks_is_replaced_by_one_that_it_has(app, language, said):
    app.session_state["device"] = "cuda:3"
    app.session_state["language"] = language
    app.run()
    assert not app.exception
    assert said in app.warning[0].value.replace("\\", "")
    assert app.selectbox(key="device").value == engine.devices()[0]
    if language == "en":  # the test runner forms the names of options in English
        assert not app.run().warning


@pytest.mark.parametrize(("language", "said"), [("en", "cannot be used"), ("zh", "无法使用")])
def test_a_gpu_that_does_not_work_says_why(app, monkeypatch, language, said):
    fault = device.DeviceError("The device {device!r} cannot be used: {error}", device="cuda", error="no kernel image")
    gpus(monkeypatch, faults=[fault])
    app.session_state["language"] = language
    app.run()
    told = [caption.value for caption in app.caption if "no kernel image" in caption.value]
    assert len(told) == 1 and said in told[0]
    assert app.selectbox(key="device").options == ["CPU"]
