"""The AWS deployment: from a stage file, through CDK constructs, to the committed CloudFormation templates.

`app` synthesises, `stacks` joins the constructs, `settings` holds every option of a stage file, `policies` checks the
templates, `cost` estimates the monthly price. Always true: nothing here imports `serve`, and nothing in `serve` imports
this package; synthesis needs neither an AWS account nor a network.
"""
