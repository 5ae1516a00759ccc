/// The version of vmha: what `vmha version` prints and vmhad says of itself.
public enum ProductVersion {
  public static let text = "0.1.0"
}
