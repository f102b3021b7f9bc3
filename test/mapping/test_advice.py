# SPDX-License-Identifier: Apache-2.0
import math

import cv2
import numpy as np
import pytest

from dark3r_ros.mapping.advice import AdviceConfig, Advisor, Measurement, Observer, measure
from dark3r_ros.types import Frame

BLACK, WHITE, READ = 64.0, 4095.0, 4.0


def _scene() -> np.ndarray:
    """Texture of all sizes, as bricks and rock have it: coarse structure is stronger in proportion to its size."""
    rng = np.random.default_rng(7)
    octaves = [rng.random((480 // size, 640 // size), np.float32) for size in (1, 2, 4, 8, 16, 32)]
    scene = sum(
        cv2.resize(octave, (640, 480), interpolation=cv2.INTER_CUBIC) * size**0.5
        for octave, size in zip(octaves, (1, 2, 4, 8, 16, 32), strict=True)
    )
    return np.maximum(scene, 0) / scene.mean()


SCENE = _scene()


def frame(stamp=0, light=300.0, black=BLACK, shift=0, blur=0, read=READ) -> Frame:
    """The scene photographed with shot and read noise; `blur` pixels of motion along x."""
    rng = np.random.default_rng(abs(stamp))
    scene = np.roll(SCENE, shift, axis=1) * light
    if blur:
        scene = cv2.blur(scene, (blur, 1))
    counts = rng.poisson(scene) + rng.normal(black, read, scene.shape)
    mosaic = np.clip(np.rint(counts), 0, WHITE).astype(np.uint16)
    return Frame(stamp, mosaic, 'rggb', (black,) * 3, WHITE)


def advise(frames, snr=10.0, advisor=None, **settings) -> list[str]:
    advisor = advisor or Advisor(AdviceConfig(**settings))
    for item in frames:
        advisor.take(measure(item), snr)
    return advisor.sentences()


def test_a_good_picture_needs_no_advice():
    assert advise(frame(number, shift=3 * number) for number in range(6)) == []


def test_the_share_at_the_black_rail_is_told():
    dark = [frame(number, light=0.5, black=4.0) for number in range(3)]
    share = np.mean(dark[0].mosaic == 0)
    assert 0.1 < share < 0.25
    (sentence,) = advise(dark)
    assert sentence == f"{100 * share:.0f} % of the pixels are at the black rail: raise the camera's black level"


def test_saturation_and_a_lens_cap_are_told():
    (sentence,) = advise(frame(number, light=4000.0) for number in range(3))
    assert 'saturated' in sentence and 'shorten the exposure' in sentence
    (sentence,) = advise(frame(number, light=0.0) for number in range(3))
    assert 'lens cap' in sentence


def test_a_low_ratio_is_told_with_its_number():
    (sentence,) = advise([frame(number) for number in range(3)], snr=-9.2)
    assert sentence.startswith('SNR -9 dB: lengthen the exposure')


@pytest.mark.parametrize('light', [300.0, 10.0])
def test_blur_is_found_in_light_and_in_the_dark(light):
    advisor = Advisor(AdviceConfig())
    sharp = [frame(number, light, shift=5 * number) for number in range(20)]
    assert advise(sharp, advisor=advisor) == []
    (sentence,) = advise([frame(number, light, blur=15) for number in range(20, 24)], advisor=advisor)
    assert 'blurred' in sentence and 'slow down' in sentence
    (sentence,) = advise([frame(number, light, blur=15) for number in range(24, 28)], snr=-8.0, advisor=advisor)
    assert 'a longer exposure would blur more' in sentence
    assert advise([frame(number, light, shift=number) for number in range(30, 34)], advisor=advisor) == []


def test_noise_alone_is_never_called_blurred():
    advisor = Advisor(AdviceConfig())
    assert advise([frame(number, shift=5 * number) for number in range(20)], advisor=advisor) == []
    assert not any('blurred' in line for line in advise([frame(n, light=0.02) for n in range(20, 26)], advisor=advisor))


def test_advice_does_not_flicker():
    advisor, told = Advisor(AdviceConfig(hold=3)), []
    shares = [0.02, 0.0] * 10 + [0.02] * 3 + [0.008, 0.006] * 5 + [0.004] * 3
    for share in shares:
        advisor.take(Measurement(share, 0.0, False, (math.nan, math.nan)), 10.0)
        told.append(bool(advisor.sentences()))
    changes = [number for number in range(1, len(told)) if told[number] != told[number - 1]]
    assert changes == [22, len(shares) - 1]


def test_one_look_counts_once_and_an_unknown_ratio_says_nothing():
    advisor = Advisor(AdviceConfig(hold=2))
    look = Measurement(0.5, 0.0, False, (math.nan, math.nan))
    for _ in range(5):
        advisor.take(look, math.nan)
    assert advisor.sentences() == []
    advisor.take(Measurement(0.5, 0.0, False, (math.nan, math.nan)), math.nan)
    assert len(advisor.sentences()) == 1


def test_frames_are_looked_at_once_a_period_and_a_clock_may_go_back():
    observer = Observer(AdviceConfig(period=0.2))
    looks = []
    for stamp in (0, 50, 150, 210, 300, 450):
        observer.look(frame(stamp * 10**6))
        looks.append(observer.newest)
    assert [look is not before for look, before in zip(looks[1:], looks[:-1], strict=True)] == [
        False, False, True, False, True,
    ]  # fmt: skip
    observer.look(frame(-(10**12)))
    assert observer.newest is not looks[-1]


@pytest.mark.parametrize('shape', [(33, 35), (3000, 4001), (32, 2000)])
def test_odd_and_large_sizes(shape):
    mosaic = np.random.default_rng(0).integers(60, 70, shape).astype(np.uint16)
    found = measure(Frame(0, mosaic, 'gbrg', (64.0,) * 3, WHITE))
    assert found.saturated == 0.0 and found.black == 0.0


def test_tiny_frames_are_left_alone():
    observer = Observer(AdviceConfig())
    observer.look(Frame(0, np.zeros((4, 4), np.uint16), 'rggb', (0.0,) * 3, WHITE))
    assert observer.newest is None
