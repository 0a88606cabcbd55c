"""One epoch over a site's images."""

import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch.nn import functional

from mnist.work import batches, network, optimizer

app = ClientApp()


@app.train()
def train(message, context):
    torch.set_num_threads(1)
    site = context.node_config["partition-id"]
    torch.manual_seed(1000 * message.content["config"]["server-round"] + site)
    model = network()
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    steps = optimizer(model)
    loader = batches(context.run_config["images"], site)
    for images, labels in loader:
        steps.zero_grad()
        functional.cross_entropy(model(images), labels).backward()
        steps.step()
    trained = {
        "arrays": ArrayRecord(model.state_dict()),
        "metrics": MetricRecord({"num-examples": len(loader.dataset)}),
    }
    return Message(content=RecordDict(trained), reply_to=message)
