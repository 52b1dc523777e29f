"""The CDK constructs of a stage, one part to a file.

Always true: arguments are typed and passed by keyword, nothing is looked up in an AWS account, and nothing is an asset
that would have to be uploaded before a template can be deployed.
"""
