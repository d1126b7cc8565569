import numpy as np
import pytest

from fairquant.data.derm import ITA_BANDS, Lesion, contrast, draw, lab_to_rgb, skin_lab

MOLE = Lesion(0.2, 0.2, 0.2)


def picture(ita=45.0, lesion=MOLE, seed=(0, 1), size=48, difficulty=0.0):
    return draw(ita, lesion, size=size, seed=seed, difficulty=difficulty)


def test_skin_has_the_ita_asked_for():
    for ita in (-55, -20, 0, 15, 35, 50, 65):
        lightness, _, b = skin_lab(ita)
        assert np.degrees(np.arctan2(lightness - 50, b)) == pytest.approx(ita)


def test_bands_follow_each_other_from_light_to_dark():
    bands = list(ITA_BANDS.values())
    assert all(low < high for low, high in bands)
    assert all(lighter[0] == darker[1] for lighter, darker in zip(bands[:-1], bands[1:], strict=True))
    lightness = [skin_lab(sum(band) / 2)[0] for band in bands]
    assert lightness == sorted(lightness, reverse=True)


@pytest.mark.parametrize(
    ("lab", "rgb"),
    [
        ((53.2408, 80.0925, 67.2032), (255, 0, 0)),
        ((87.7347, -86.1827, 83.1793), (0, 255, 0)),
        ((32.2970, 79.1875, -107.8602), (0, 0, 255)),
        ((53.5850, 0.0, 0.0), (128, 128, 128)),
        ((0.0, 0.0, 0.0), (0, 0, 0)),
    ],
)
def test_lab_to_rgb_agrees_with_published_values(lab, rgb):
    assert np.abs(lab_to_rgb(np.array(lab, np.float32)) * 255 - rgb).max() < 1


def test_the_seed_decides_everything():
    assert np.array_equal(picture(), picture())
    assert not np.array_equal(picture(), picture(seed=(0, 2)))
    assert picture(size=31).shape == (31, 31, 3) and picture().dtype == np.uint8


def test_lesions_are_fainter_on_dark_skin():
    def depth(ita):
        values = []
        for seed in range(20):
            image = picture(ita, seed=(0, seed)).astype(float).mean(axis=2)
            values.append(np.median(image[:4]) - np.median(image[20:28, 20:28]))
        return np.mean(values)

    assert depth(60) > 2 * depth(-45) > 0
    assert (
        contrast(55, 0.3) == 1 and contrast(-55, 0.3) == pytest.approx(0.3) and contrast(0, 0.3) == pytest.approx(0.65)
    )


def test_colour_variegation_and_asymmetry_show_in_the_image():
    def spread(lesion):
        centre = [picture(lesion=lesion, seed=(0, seed))[16:32, 16:32].astype(float) for seed in range(20)]
        return np.mean([image.std(axis=(0, 1)).mean() for image in centre])

    plain = spread(Lesion(0.2, 0.0, 0.0))
    assert spread(Lesion(0.2, 0.9, 0.0)) > 1.5 * plain
    assert spread(Lesion(0.2, 0.0, 0.9)) > 1.1 * plain


def test_difficulty_adds_noise():
    def noise(difficulty):
        image = picture(difficulty=difficulty).astype(float)
        return np.abs(np.diff(image[:6], axis=1)).mean()

    assert noise(1.0) > 2 * noise(0.0)
