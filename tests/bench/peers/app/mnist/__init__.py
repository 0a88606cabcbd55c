"""FedAvg over shares of MNIST, as an app of Flower."""
