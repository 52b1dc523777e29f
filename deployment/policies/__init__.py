"""What linters miss: rules over a synthesised template, as pure functions. `python -m deployment.policies FILE ...`

cfn-lint knows the schema of each resource and cdk-nag the habits of AWS. Neither adds up two resources, or knows this
server: a drain longer than the stop timeout, a load balancer that outlives the server's connections, a GPU on Fargate
and a task larger than its instance all pass both. These rules read the template as it is deployed, whoever wrote it.
"""

from deployment.policies.access import ACCESS_POLICIES
from deployment.policies.containers import CONTAINER_POLICIES
from deployment.policies.rollout import ROLLOUT_POLICIES
from deployment.policies.template import Policy, Template, Violation
from deployment.policies.timing import TIMING_POLICIES

POLICIES: tuple[Policy, ...] = (*CONTAINER_POLICIES, *TIMING_POLICIES, *ROLLOUT_POLICIES, *ACCESS_POLICIES)


def check(template: Template) -> list[Violation]:
    """Everything that is wrong with a template."""
    return [violation for policy in POLICIES for violation in policy(template)]


__all__ = ["POLICIES", "Policy", "Template", "Violation", "check"]
