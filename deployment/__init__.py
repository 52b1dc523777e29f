"""The AWS deployment: stage files -> CDK constructs -> committed CloudFormation templates. Without `serve/`."""
