"""The cost estimate: every price has a date and a source, and a missing price stays missing."""

import pytest

from deployment.cost import estimate, main, read_prices
from deployment.instances import instance_types
from deployment.settings import STAGES, Stage, read_stage


def test_every_price_has_a_source_and_only_the_unknown_have_none() -> None:
    prices = read_prices()
    assert prices.as_of == "2026-11-22"
    for name, price in prices.items.items():
        assert len(price.source) > 10, name
        assert (price.usd is None) == (price.status == "unknown"), name


def test_every_instance_type_has_a_price() -> None:
    assert instance_types().keys() <= read_prices().items.keys()


def test_the_sum_of_a_stage() -> None:
    stage = Stage(
        name="demo",
        gpu_service={"instance_types": ["g6.xlarge"], "min_tasks": 2, "max_tasks": 2},
        cpu_service={"cpu_units": 4096, "memory_mib": 16384, "min_tasks": 1},
    )
    lines = {line.what: line.usd for line in estimate(stage)}
    assert lines["2 x g6.xlarge"] == pytest.approx(2 * 0.8048 * 730)
    assert lines["fee of Managed Instances"] == pytest.approx(0.12 * 2 * 0.8048 * 730)
    assert lines["1 x Fargate, 4 vCPUs"] + lines["1 x Fargate, 16 GB"] == pytest.approx(170, abs=1)  # type: ignore[operator]
    assert lines["1 NAT gateway(s)"] is None


def test_a_missing_price_is_reported_as_not_known(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ec2"]) == 0
    text = capsys.readouterr().out
    assert "not known  1 load balancer" in text
    assert "predictions per dollar: not measured" in text
    assert len(list(estimate(read_stage(STAGES / "ec2.yaml")))) == text.count("\n") - 2
