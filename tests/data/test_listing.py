from fairquant.data.listing import find_images


def test_the_first_folder_wins_and_other_files_are_skipped(tmp_path):
    for name in ("a/1.jpg", "a/2.JPG", "a/3.png", "a/4.txt", "b/1.jpg", "b/5.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = find_images(tmp_path, ["none", "a", "b"])
    assert {name: str(path.relative_to(tmp_path)) for name, path in found.items()} == {
        "1": "a/1.jpg",
        "2": "a/2.JPG",
        "5": "b/5.jpg",
    }
    assert list(find_images(tmp_path, ["a"], suffixes=(".png",))) == ["3"]
