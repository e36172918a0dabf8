"""What Prefect does when an endpoint's class changes: run a deployment on the endpoint, here a second audit.

python flows/automation.py [DEPLOYMENT]        default: audit/audit; made again, it replaces the one before

The deployment gets the endpoint of the event, without a claim: what is it now?
For messages (mail, Slack, PagerDuty) add an action of type SendNotification with a block of yours, or pick one on
Prefect's page.
"""

from __future__ import annotations

import sys
from datetime import timedelta
from uuid import UUID

from hspi.quiet import be_quiet

be_quiet()  # before Prefect reads its settings

from prefect.automations import Automation  # noqa: E402
from prefect.client.orchestration import get_client  # noqa: E402
from prefect.events import EventTrigger  # noqa: E402
from prefect.events.actions import RunDeployment  # noqa: E402
from prefect.events.schemas.automations import Posture  # noqa: E402

NAME, CHANGED = "hspi-class-changed", "hspi.class-changed"
PARAMETERS = {  # of the deployment: what the event says
    "base_url": "{{ event.payload.endpoint }}",
    "model": "{{ event.payload.served }}",
    "weights": "{{ event.payload.weights_id }}",
    "out": '{{ event.payload.path ~ "-again" }}',
}


def install(deployment: str = "audit/audit") -> Automation:
    """Make the automation, in the place of an older one. Raises ObjectNotFound if there is no such deployment."""
    with get_client(sync_client=True) as client:
        target: UUID = client.read_deployment_by_name(deployment).id
        for old in client.read_automations_by_name(NAME):
            client.delete_automation(old.id)
    trigger = EventTrigger(
        expect={CHANGED}, match={"prefect.resource.id": "hspi.endpoint.*"}, posture=Posture.Reactive,
        for_each={"prefect.resource.id"}, threshold=1, within=timedelta(0),
    )  # fmt: skip
    asked = {name: {"__prefect_kind": "jinja", "template": template} for name, template in PARAMETERS.items()}
    action = RunDeployment(source="selected", deployment_id=target, parameters=asked, job_variables={})
    made = Automation(
        name=NAME, description="Another audit where the class of an endpoint changed", trigger=trigger, actions=[action]
    )
    return made.create()  # type: ignore[return-value]


if __name__ == "__main__":
    made = install(*sys.argv[1:2])
    print(f"automation {made.name} {made.id}")
