/// The schemas as the daemon carries them; a test holds them equal to the files shipped for editors:
/// packaging/cluster.rng and vm-modules/kvm/module.rng.
enum Schemas {
  static let cluster = #"""
    <?xml version="1.0" encoding="UTF-8"?>
    <!-- Schema of /etc/vmha/cluster.xml. Ranges and relations are checked by vmhad, which says more than a schema can. -->
    <grammar xmlns="http://relaxng.org/ns/structure/1.0" datatypeLibrary="http://www.w3.org/2001/XMLSchema-datatypes">
      <start>
        <element name="cluster">
          <attribute name="name"><ref name="name"/></attribute>
          <attribute name="uuid"><ref name="uuid"/></attribute>
          <attribute name="revision"><data type="positiveInteger"/></attribute>
          <interleave>
            <oneOrMore><ref name="node"/></oneOrMore>
            <oneOrMore><ref name="link"/></oneOrMore>
            <optional>
              <element name="heartbeat">
                <optional><attribute name="pulse"><ref name="time"/></attribute></optional>
                <optional><attribute name="detection"><ref name="time"/></attribute></optional>
              </element>
            </optional>
            <optional>
              <element name="arbiter">
                <attribute name="kind"><ref name="arbiter-kind"/></attribute>
                <interleave>
                  <optional><ref name="witness"/></optional>
                  <zeroOrMore><ref name="fence"/></zeroOrMore>
                  <zeroOrMore>
                    <element name="ping"><attribute name="address"><data type="string"><param name="pattern">[0-9a-fA-F.:]+</param></data></attribute></element>
                  </zeroOrMore>
                  <zeroOrMore>
                    <element name="module">
                      <attribute name="name">
                        <data type="string"><param name="pattern">[A-Za-z0-9_+][A-Za-z0-9._+\-]{0,63}</param></data>
                      </attribute>
                      <attribute name="kind"><ref name="arbiter-kind"/></attribute>
                    </element>
                  </zeroOrMore>
                </interleave>
              </element>
            </optional>
            <optional>
              <element name="boot">
                <optional><attribute name="wait"><ref name="time"/></attribute></optional>
                <optional>
                  <attribute name="policy"><choice><value>arbiter</value><value>wait</value></choice></attribute>
                </optional>
                <optional>
                  <attribute name="force-after"><choice><value>off</value><ref name="time"/></choice></attribute>
                </optional>
              </element>
            </optional>
            <optional>
              <element name="split">
                <optional>
                  <attribute name="policy"><choice><value>ask</value><value>keep-preferred</value></choice></attribute>
                </optional>
              </element>
            </optional>
            <optional>
              <element name="scrub">
                <optional>
                  <attribute name="interval"><choice><value>off</value><ref name="time"/></choice></attribute>
                </optional>
                <optional><attribute name="rate"><data type="positiveInteger"/></attribute></optional>
              </element>
            </optional>
          </interleave>
        </element>
      </start>
      <define name="arbiter-kind">
        <choice>
          <value>policy=none</value><value>policy=ping</value><value>wait</value><value>witness</value>
          <value>fence</value><value>witness+fence</value>
        </choice>
      </define>
      <define name="node">
        <element name="node">
          <attribute name="id"><ref name="node-id"/></attribute>
          <attribute name="name"><ref name="name"/></attribute>
        </element>
      </define>
      <define name="link">
        <element name="link">
          <attribute name="name"><ref name="name"/></attribute>
          <attribute name="replication"><choice><value>yes</value><value>no</value></choice></attribute>
          <oneOrMore>
            <element name="address">
              <attribute name="node"><ref name="node-id"/></attribute>
              <attribute name="ip"><data type="string"><param name="pattern">[0-9a-fA-F.:]+</param></data></attribute>
            </element>
          </oneOrMore>
        </element>
      </define>
      <define name="witness">
        <element name="witness">
          <optional><attribute name="ca"><ref name="path"/></attribute></optional>
          <optional><attribute name="certificate"><ref name="path"/></attribute></optional>
          <optional><attribute name="key"><ref name="path"/></attribute></optional>
          <optional><attribute name="user"><ref name="name"/></attribute></optional>
          <optional><attribute name="password-file"><ref name="path"/></attribute></optional>
          <oneOrMore>
            <element name="endpoint">
              <attribute name="url"><data type="string"><param name="pattern">https?://.+</param></data></attribute>
            </element>
          </oneOrMore>
        </element>
      </define>
      <define name="fence">
        <element name="fence">
          <attribute name="node"><ref name="node-id"/></attribute>
          <attribute name="agent"><data type="string"><param name="pattern">fence_[a-z0-9_]+|/.+</param></data></attribute>
          <attribute name="options"><ref name="path"/></attribute>
        </element>
      </define>
      <define name="path"><data type="string"><param name="pattern">/[^/].*</param></data></define>
      <define name="node-id"><choice><value>1</value><value>2</value></choice></define>
      <define name="name">
        <data type="string"><param name="pattern">[A-Za-z0-9][A-Za-z0-9._\-]{0,63}</param></data>
      </define>
      <define name="uuid">
        <data type="string">
          <param name="pattern">[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}</param>
        </data>
      </define>
      <define name="time"><data type="string"><param name="pattern">[0-9]+(ms|s|m|h|d)</param></data></define>
    </grammar>

    """#

  static let module = #"""
    <?xml version="1.0" encoding="UTF-8"?>
    <!-- Schema of /etc/vmha/modules/VM/module.xml. Ranges and relations are checked by vmhad, which says more than a
         schema can. -->
    <grammar xmlns="http://relaxng.org/ns/structure/1.0" datatypeLibrary="http://www.w3.org/2001/XMLSchema-datatypes">
      <start>
        <element name="module">
          <attribute name="name">
            <data type="string"><param name="pattern">[A-Za-z0-9_+][A-Za-z0-9._+\-]{0,63}</param></data>
          </attribute>
          <attribute name="number">
            <data type="integer"><param name="minInclusive">1</param><param name="maxInclusive">25</param></data>
          </attribute>
          <attribute name="uuid">
            <data type="string">
              <param name="pattern">[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}</param>
            </data>
          </attribute>
          <optional>
            <attribute name="resync-priority"><choice><value>high</value><value>normal</value><value>low</value></choice></attribute>
          </optional>
          <interleave>
            <element name="directory">
              <attribute name="backing"><ref name="absolute-path"/></attribute>
              <attribute name="mount"><ref name="absolute-path"/></attribute>
            </element>
            <element name="preferred">
              <attribute name="node"><choice><value>1</value><value>2</value></choice></attribute>
            </element>
            <optional>
              <element name="start"><optional><attribute name="timeout"><ref name="time"/></attribute></optional></element>
            </optional>
            <optional>
              <element name="stop"><optional><attribute name="timeout"><ref name="time"/></attribute></optional></element>
            </optional>
            <optional>
              <element name="restarts">
                <optional><attribute name="max"><data type="nonNegativeInteger"/></attribute></optional>
                <optional><attribute name="window"><ref name="time"/></attribute></optional>
              </element>
            </optional>
            <optional><ref name="check"/></optional>
            <element name="disks"><oneOrMore><ref name="disk"/></oneOrMore></element>
            <optional><element name="files"><zeroOrMore><ref name="file"/></zeroOrMore></element></optional>
          </interleave>
        </element>
      </start>
      <define name="check">
        <element name="check">
          <choice>
            <element name="tcp">
              <attribute name="address"><ref name="address"/></attribute>
              <attribute name="port">
                <data type="integer"><param name="minInclusive">1</param><param name="maxInclusive">65535</param></data>
              </attribute>
            </element>
            <element name="ping"><attribute name="address"><ref name="address"/></attribute></element>
          </choice>
        </element>
      </define>
      <define name="disk">
        <element name="disk">
          <attribute name="target"><ref name="word"/></attribute>
          <attribute name="path"><ref name="relative-path"/></attribute>
          <attribute name="format"><ref name="word"/></attribute>
          <attribute name="original"><ref name="absolute-path"/></attribute>
        </element>
      </define>
      <define name="file">
        <element name="file">
          <attribute name="path"><ref name="relative-path"/></attribute>
          <attribute name="original"><ref name="absolute-path"/></attribute>
        </element>
      </define>
      <define name="absolute-path"><data type="string"><param name="pattern">/[^/].*</param></data></define>
      <define name="relative-path"><data type="string"><param name="pattern">[^/].*</param></data></define>
      <define name="word"><data type="string"><param name="pattern">[A-Za-z0-9_\-]{1,32}</param></data></define>
      <define name="address"><data type="string"><param name="pattern">[0-9a-fA-F.:]+</param></data></define>
      <define name="time"><data type="string"><param name="pattern">[0-9]+(ms|s|m|h|d)</param></data></define>
    </grammar>

    """#
}
