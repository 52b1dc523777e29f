"""What `store.models` may hold: places are understood or refused, and no pickle is taken without its digest."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from serve.settings import StoreSettings
from serve.settings.model_source import ModelSource, S3Location, parse_model

PIN = "0123456789abcdef" * 4

names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", fullmatch=True)
buckets = st.from_regex(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", fullmatch=True)
keys = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), max_size=40).map(
    lambda key: key.rstrip("/")
)


def source(uri: str, sha256: str | None = PIN) -> ModelSource:
    return ModelSource(name="churn", uri=uri, sha256=sha256)


@given(buckets, keys, st.integers(0, 2))
def test_a_key_is_taken_as_it_is_written(bucket: str, key: str, num_slashes: int) -> None:
    place = source(f"s3://{bucket}/{key}" + "/" * num_slashes).location
    assert place == S3Location(bucket, key)
    assert str(place) == f"s3://{bucket}/{key}"


@given(st.text())
def test_any_text_is_a_place_or_refused(uri: str) -> None:
    try:
        place = source(uri).location
    except ValidationError:
        return
    assert isinstance(place, Path | S3Location)
    assert str(place).isprintable()


@pytest.mark.parametrize(
    ("uri", "place"),
    [
        ("models/fraud/1", Path("models/fraud/1")),
        ("/models/fraud/1", Path("/models/fraud/1")),
        ("file:///models/fr%20aud/1", Path("/models/fr aud/1")),
        ("S3://bucket/fraud/1/", S3Location("bucket", "fraud/1")),
        ("s3://bucket", S3Location("bucket", "")),
    ],
)
def test_places(uri: str, place: Path | S3Location) -> None:
    assert source(uri).location == place


def test_files_of_a_folder_in_s3() -> None:
    assert S3Location("bucket", "fraud/1").child("manifest.json") == S3Location("bucket", "fraud/1/manifest.json")
    assert S3Location("bucket", "").child("manifest.json") == S3Location("bucket", "manifest.json")


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("", "is not a path or a URI"),
        ("a\nb", "is not a path or a URI"),
        ("https://host/model", "not from https://"),
        ("s3:///fraud", "names no valid bucket"),
        ("file://host/models", "no file on this machine"),
        ("file:///models?x=1", "no file on this machine"),
        ("file:///a%0Ab", "is not a path or a URI"),
    ],
)
def test_other_places_are_refused(uri: str, reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        source(uri)


@pytest.mark.parametrize("file", ["tabpfn_model.pkl", "m.PICKLE", "m.joblib", "m.tabpfn_fit", "v1.2.pkl/"])
@pytest.mark.parametrize("folder", ["s3://bucket/", "/models/", "", "file:///models/"])
def test_a_pickle_is_known_by_its_suffix_and_must_be_pinned(folder: str, file: str) -> None:
    assert source(folder + file).is_pickle
    with pytest.raises(ValidationError, match=rf"add `sha256: HEX`, where HEX is what `sha256sum {file.rstrip('/')}`"):
        source(folder + file, None)


def test_a_folder_needs_no_digest() -> None:
    assert not source("s3://bucket/my.pkl/1", None).is_pickle


@pytest.mark.parametrize("pin", ["", "0" * 63, "g" * 64, "0" * 65, f"{PIN}\n"])
def test_a_digest_has_64_digits(pin: str) -> None:
    with pytest.raises(ValidationError, match="sha256"):
        source("models/fraud/1", pin)


@given(names, st.text(min_size=1).filter(lambda uri: "@sha256:" not in uri), st.sampled_from([None, PIN, PIN.upper()]))
def test_the_short_form_says_the_same(name: str, uri: str, pin: str | None) -> None:
    text = f"{name}={uri}" + ("" if pin is None else f"@sha256:{pin}")
    assert parse_model(text) == {"name": name, "uri": uri, **({} if pin is None else {"sha256": pin})}


@pytest.mark.parametrize("text", ["", "fraud", "=s3://b/x", "fraud=", "fraud=s3://b/x@sha256:12", f"f=a@sha256:{PIN}0"])
def test_a_bad_short_form_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not NAME=URI|does not end with a SHA-256"):
        parse_model(text)


def settings(*names: str, **others: str) -> StoreSettings:
    return StoreSettings.model_validate({"models": [{"name": name, "uri": "x"} for name in names], **others})


def test_two_models_of_one_name_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"store\.models names a, b more than once"):
        settings("b", "a", "c", "a", "b")


def test_models_come_from_a_list_or_from_a_repository() -> None:
    with pytest.raises(ValidationError, match=r"store\.models and store\.model_repository are both set"):
        settings("a", model_repository="models")


def test_unknown_keys_are_refused() -> None:
    with pytest.raises(ValidationError, match="Extra inputs"):
        StoreSettings.model_validate({"models": [{"name": "a", "uri": "x", "digest": PIN}]})
