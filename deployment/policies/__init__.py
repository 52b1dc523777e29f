"""Rules over a synthesised template that no linter has, as pure functions. `python -m deployment.policies FILE ...`

cfn-lint knows the schema of each resource, and cdk-nag what AWS advises against: wildcard actions, security groups open
to everyone, public buckets, buckets without TLS. Neither compares two resources, and neither knows this server. So
both accept a drain longer than the stop timeout, or a task larger than its instance. The rules here find such faults.
They read the template that is deployed, whatever it was made from.
"""

from deployment.policies.access import ACCESS_POLICIES
from deployment.policies.containers import CONTAINER_POLICIES
from deployment.policies.rollout import ROLLOUT_POLICIES
from deployment.policies.template import Policy, Template, Violation
from deployment.policies.timing import TIMING_POLICIES

POLICIES: tuple[Policy, ...] = (*CONTAINER_POLICIES, *TIMING_POLICIES, *ROLLOUT_POLICIES, *ACCESS_POLICIES)


def check(template: Template) -> list[Violation]:
    """Every violation of every policy in a template."""
    return [violation for policy in POLICIES for violation in policy(template)]


__all__ = ["POLICIES", "Policy", "Template", "Violation", "check"]
