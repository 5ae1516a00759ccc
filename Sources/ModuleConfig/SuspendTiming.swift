import Model

extension ClusterConfiguration {
  /// From the moment a cut-off primary decides to suspend its guest until its virtual CPUs stand: a look at the clock, a
  /// message to vmhad, a call of libvirt.
  public static let suspendMargin = Duration.milliseconds(300)

  /// A primary that needs its peer and has not heard it for this long holds its guest's reads and suspends it. Two thirds of
  /// the detection time, so that it stands before the other side may start its own (R2; docs/timing.md).
  public var suspendAfter: Duration { detection * 2 / 3 }
}
